/**
 * Calls `expired` after so many milliseconds, but only once what has come by then is read: a process that was busy for that
 * long finds its timers expired before it looks at its sockets, and would blame peers for its own silence. Gives what takes the
 * limit away.
 */
export function timeLimit(milliseconds: number, expired: () => void): () => void {
  let isOver = false;
  const timer = setTimeout(() => {
    // The event loop looks at its sockets between two immediates.
    setImmediate(() =>
      setImmediate(() => {
        if (!isOver) expired();
      }),
    );
  }, milliseconds);
  return () => {
    isOver = true;
    clearTimeout(timer);
  };
}
