/** What other generations there are: ids that they use must not come to mean something else. */
export type Others = "none" | "kept" | "live";
