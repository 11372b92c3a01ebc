/** The steps by which a generation comes to govern and those before it go. Whoever wants to note them is told before each. */

/** A generation, by what names it. */
export interface GenerationName {
  /** What its tables look like. */
  abi: string;
  /** Which programs run over them; absent when that can't be told. */
  code?: string;
}

export interface Step {
  name: "build" | "fill" | "probe" | "flip" | "remove";
  /** What governs while it is taken; of a removal, what goes. Absent when nothing governs. */
  from?: GenerationName;
  /** What is to govern. Absent for a removal. */
  to?: GenerationName;
}

/** Hears of a step before it is taken, and `undefined` when it is done. A step that throws is not done. */
export type Announce = (step: Step | undefined) => void;
