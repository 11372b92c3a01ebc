import { eventually, output } from "./process.ts";

/** A link of the machine as `bpftool link` prints it. */
export interface ListedLink {
  id: number;
  prog_id: number;
  /** Paths of its pins. */
  pinned?: string[];
}

/** Every BPF link of the machine, with the paths of its pins. Throws when bpftool keeps failing. */
export function listLinks(): Promise<ListedLink[]> {
  return list("--bpffs", "--json", "link");
}

/** Ids of every BPF program of the machine. Throws when bpftool keeps failing. */
export async function listPrograms(): Promise<number[]> {
  const programs = await list<{ id: number }>("--json", "prog");
  return programs.map(({ id }) => id);
}

/**
 * Asks bpftool until it prints a whole list. It stops in the middle, with an exit code, at an object that another test
 * is just making: bpf(2) gives EAGAIN for a link whose id is not published yet.
 */
function list<T>(...words: string[]): Promise<T[]> {
  return eventually(`bpftool ${words.join(" ")}`, async () =>
    JSON.parse((await output(["bpftool", ...words])) || "[]"),
  );
}
