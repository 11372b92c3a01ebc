import { UsageError } from "../../framework/arguments.ts";
import { command, FOLDER_FLAGS, OUTPUT_FLAG } from "../../framework/command.ts";
import { EXIT, Failure } from "../../framework/exit.ts";
import { formatOf, print, printJson } from "../../framework/output.ts";
import { foldersOf } from "../../framework/view.ts";

/** Explains what happens to a query that passes. */
const PASSED: Readonly<Record<string, string>> = {
  "passed-unknown": "no mesh name, so the query goes on to the machine's name servers",
  "passed-excluded": "dns-exclude names it, so the query goes on to the machine's name servers",
  "passed-malformed": "not a valid name",
  "passed-off": "names are not answered (dns: off)",
};

/** How many of the addresses a query of this type is answered with, as far as they fit. */
function ofFamily(addresses: readonly string[], type: string): number {
  if (type !== "A" && type !== "AAAA") return 0;
  return addresses.filter((address) => address.includes(":") === (type === "AAAA")).length;
}

export const resolve = command({
  name: "resolve",
  about: "Show the kernel's answer to a DNS query, and its table entry",
  positionals: [
    { name: "name", about: "a name, or an address for its reverse name", required: true },
    {
      name: "type",
      about: "A, AAAA, PTR, HTTPS, ... (default: A and AAAA, PTR of an address)",
      required: false,
    },
  ],
  flags: { ...FOLDER_FLAGS, ...OUTPUT_FLAG },
  examples: [
    ["resolve shop.demo.internal", "Show the addresses in the kernel's answer"],
    ["resolve 10.96.0.10", "Show the name of an address"],
    ["resolve shop.demo.internal HTTPS", "Show the answer for a record type that mesh names lack"],
  ],
  async run({ flags, positionals: [asked = "", type] }) {
    const format = formatOf(flags);
    const { bpffs } = foldersOf(flags);
    const [
      { pinnedNames },
      { askKernel, queryMessage, TYPES },
      { canonicalAddress },
      { reverseName },
      { wireName },
    ] = await Promise.all([
      import("../../../names/pins.ts"),
      import("../../../names/query.ts"),
      import("../../../mesh/address.ts"),
      import("../../../names/entries.ts"),
      import("../../../names/wire.ts"),
    ]);
    const wanted = TYPES.find((each) => each === type?.toUpperCase());
    if (type !== undefined && wanted === undefined)
      throw new UsageError(
        `${type} is not a type of record that kmesh knows`,
        `Name one of ${TYPES.join(", ")}.`,
      );
    const address = canonicalAddress(asked);
    const name = address === undefined ? asked.replace(/\.$/, "").toLowerCase() : reverseName(address);
    if (!wireName(name))
      throw new UsageError(`${asked} is not a DNS name`, "Write for example shop.demo.internal.");
    const names = pinnedNames(bpffs);
    if (!names)
      throw new Failure(
        EXIT.agentNotRunning,
        `no table of names is pinned in ${bpffs}`,
        "kmesh status says whether an agent runs and names are on (setting dns).",
      );
    try {
      const types = wanted ? [wanted] : address === undefined ? (["A", "AAAA"] as const) : (["PTR"] as const);
      const answers = types.map((each) => {
        const { event, entry, response } = askKernel(names.explain, queryMessage(name, each));
        const records = (response?.answers ?? []).map((record) =>
          "data" in record ? String(record.data) : "",
        );
        const held = entry === undefined ? undefined : names.table.byId(entry);
        return {
          type: each,
          answered: response !== undefined,
          event,
          entry: held?.name ?? null,
          records,
          truncated: response?.flag_tc ?? false,
          leftOut:
            response && held?.kind === "addresses"
              ? Math.max(0, ofFamily(held.addresses, each) - records.length)
              : 0,
        };
      });
      if (format === "json") printJson({ name, answers });
      else
        print(
          answers
            .map(({ type: of, answered, event, entry, records, leftOut }) =>
              answered
                ? `${name} ${of}: ${records.length > 0 ? records.join(", ") : "exists without such a record"} (entry ${entry}${leftOut > 0 ? `; ${leftOut} more do not fit, each answer has others` : ""})`
                : `${name} ${of}: not answered: ${PASSED[event] ?? event}${entry === null ? "" : ` (entry ${entry})`}`,
            )
            .join("\n"),
        );
      return EXIT.done;
    } finally {
      names.close();
    }
  },
});
