/** The steps between two generations. Each is announced before it is taken, so that it can be recorded. */

/** Identifies a generation. */
export interface GenerationName {
  /** The layout of its tables. */
  abi: string;
  /** Its programs; absent when unknown. */
  code?: string;
}

export interface Step {
  name: "build" | "fill" | "probe" | "flip" | "remove";
  /** The live generation during the step; for a removal, the removed one. Absent when none governs. */
  from?: GenerationName;
  /** The generation that will be live. Absent for a removal. */
  to?: GenerationName;
}

/** Called with a step before it is taken, and with `undefined` when it is done. A step that throws is not done. */
export type Announce = (step: Step | undefined) => void;
