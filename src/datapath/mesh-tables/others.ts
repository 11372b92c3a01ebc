/** The other generations, whose ids must not be reused. */
export type Others = "none" | "kept" | "live";
