/** How an agent asks another process to take over. */

/** Two versions talk: what is said (handover.ts) may only gain fields. Anything else is another protocol. */
export const PROTOCOL = 1;

/** The variable that names the socket where the predecessor waits. */
export const INVITATION = "KMESH_HANDOVER";
