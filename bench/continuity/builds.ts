/** The build under test, and one with another table layout. */
export type Build = "own" | "wide";
/** By build, its file. `bad`: with the other layout, and programs that lead connections astray. */
export type Builds = Readonly<Record<Build | "bad", string>>;
