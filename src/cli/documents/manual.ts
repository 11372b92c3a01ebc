/** The manual pages kmesh(8) and kmesh.yaml(5), made from the tables of commands and settings, in man(7)'s macros. */
import { LIVE, SETTINGS, type Setting, variableOf } from "../../config/settings.ts";
import { CONFIG_FILE } from "../../config/sources.ts";
import { type Command, describeFlag, formatFlag, ownFlags } from "../framework/command.ts";
import { EXIT_CODES } from "../framework/exit.ts";
import { usageOf } from "../framework/help.ts";

export const PAGES = ["kmesh.8", "kmesh.yaml.5"] as const;
export type Page = (typeof PAGES)[number];

/** The date of the last change of this text. It is fixed, so that builds are reproducible. */
const DATE = "2026-11-29";

interface About {
  version: string;
  description: string;
}

/** One page in troff. */
export function manualPage(page: Page, commands: readonly Command[], about: About): string {
  return page === "kmesh.8" ? commandPage(commands, about) : settingsPage(about);
}

function commandPage(commands: readonly Command[], { version, description }: About): string {
  const listed = commands.filter(({ hidden }) => !hidden);
  return page("KMESH", 8, version, [
    section("NAME", text(`kmesh - ${lower(description)}`)),
    section("SYNOPSIS", ".B kmesh\n.I command\n[\\fIflags\\fR] [\\fIarguments\\fR]"),
    section(
      "DESCRIPTION",
      text(
        "kmesh joins a Linux machine to an Istio mesh. Small BPF programs choose the endpoint of a connection when it is " +
          "made, by tables that the agent (kmesh run) compiles from what istiod sends. What is in the kernel stays when the " +
          "agent ends or is killed.\n\nMost commands print JSON with --output json, also their errors. A flag wins over a " +
          `variable, a variable over ${CONFIG_FILE}; see kmesh.yaml(5).`,
      ),
    ),
    section("COMMANDS", listed.map(commandSection).join("\n")),
    section("EXIT STATUS", EXIT_CODES.map(([code, meaning]) => item(`${code}`, meaning)).join("\n")),
    section(
      "FILES",
      [
        [CONFIG_FILE, "the configuration, kmesh.yaml(5)"],
        [SETTINGS["state-dir"].fallback, "what outlives a reboot: certificate, snapshot, history"],
        [SETTINGS["run-dir"].fallback, "lock, sockets and status of the agent"],
        [SETTINGS.bpffs.fallback, "programs, maps and links"],
      ]
        .map(([path = "", what = ""]) => item(path, what))
        .join("\n"),
    ),
    section("SEE ALSO", text("kmesh.yaml(5), systemctl(1), bpf(2), cgroups(7)")),
  ]);
}

function commandSection(command: Command): string {
  const { about, flags, notes, examples } = command;
  // run and doctor take every setting as a flag: kmesh.yaml(5) has them.
  const own = ownFlags(command);
  const parts = [
    `.SS ${macro(usageOf(command))}`,
    text(`${about}.`),
    ...own.map(([name, flag]) => item(formatFlag(name, flag), describeFlag(flag))),
    ...("istiod" in flags ? [`.PP\n${text("Every setting of kmesh.yaml(5) is a flag, too.")}`] : []),
    ...(notes === "" ? [] : [`.PP\n${text(notes)}`]),
    ...examples.map(([line, what]) => `.PP\n${text(`${what}:`)}\n${literal(`kmesh ${line}`)}`),
  ];
  return parts.join("\n");
}

function settingsPage({ version }: About): string {
  return page("KMESH.YAML", 5, version, [
    section("NAME", text("kmesh.yaml - settings of kmesh(8)")),
    section("SYNOPSIS", `.I ${escaped(CONFIG_FILE)}`),
    section(
      "DESCRIPTION",
      text(
        "One key and a value a line, as YAML. Each key is also a flag of kmesh run and kmesh doctor, and an environment " +
          "variable: service-account is --service-account and KMESH_SERVICE_ACCOUNT. A flag wins over a variable, a variable " +
          "over the file. Needed are istiod and ca, or plaintext. Lists are YAML lists, or texts with commas; maps are YAML " +
          "maps, and KEY=VALUE elsewhere. kmesh config check names everything that is wrong with a file.\n\nsystemctl reload " +
          `kmesh changes ${LIVE.join(", ")} at once; other settings need systemctl restart kmesh, ` +
          "which costs no connection.",
      ),
    ),
    section(
      "SETTINGS",
      Object.entries(SETTINGS)
        .map(([name, setting]) => item(settingHead(name, setting), settingText(name, setting)))
        .join("\n"),
    ),
    section(
      "EXAMPLES",
      literal(
        "istiod: istiod.istio-system.svc:15012\nhosts: {istiod.istio-system.svc: 192.0.2.10}\nca: /var/lib/kmesh/root-cert.pem\n" +
          "token: /var/lib/kmesh/istio-token\nnamespace: shop\nservice-account: vm\nunit: [nginx.service]\n" +
          "readiness-probe: {httpGet: {path: /ready, port: 8080}}",
      ),
    ),
    section("SEE ALSO", text("kmesh(8)")),
  ]);
}

function settingHead(name: string, { kind, hint }: Setting): string {
  return `${name}: ${kind === "switch" ? "true|false" : (hint ?? "VALUE")}`;
}

function settingText(name: string, { about, fallback, kind }: Setting): string {
  const shape = { list: " A list.", map: " A map.", json: " YAML of any shape.", text: "", switch: "" }[kind];
  const otherwise = fallback ? ` The default is ${fallback}.` : "";
  return `${upper(about)}.${shape}${otherwise} Variable ${variableOf(name)}.`;
}

function page(title: string, number: number, version: string, sections: readonly string[]): string {
  return `${[`.TH ${title} ${number} ${DATE} "kmesh ${escaped(version)}"`, ...sections].join("\n")}\n`;
}

function section(title: string, body: string): string {
  return `.SH ${title}\n${body}`;
}

function item(head: string, body: string): string {
  return `.TP\n.B ${macro(head)}\n${text(body)}`;
}

/** Formats paragraphs. Lines that begin with a blank are examples and stay as they are. */
function text(source: string): string {
  const paragraphs = source.split(/\n\n+/).map((paragraph) => {
    const lines = paragraph.split("\n");
    if (lines.every((line) => line.startsWith(" ")))
      return literal(lines.map((line) => line.trim()).join("\n"));
    // One sentence a line, the convention of troff.
    return lines
      .join(" ")
      .replace(/ +/g, " ")
      .trim()
      .split(/(?<=[.:?]) (?=[A-Z])/)
      .map(escaped)
      .join("\n");
  });
  return paragraphs.join("\n.PP\n");
}

function literal(source: string): string {
  return `.RS 4\n.nf\n${source.split("\n").map(escaped).join("\n")}\n.fi\n.RE`;
}

/** Escapes text for the line of a macro. */
function macro(source: string): string {
  return escaped(source).replaceAll('"', "\\(dq");
}

function escaped(source: string): string {
  return source
    .replaceAll("\\", "\\e")
    .replaceAll("-", "\\-")
    .replace(/^([.'])/, "\\&$1");
}

function lower(source: string): string {
  return source.charAt(0).toLowerCase() + source.slice(1);
}

function upper(source: string): string {
  return source.charAt(0).toUpperCase() + source.slice(1);
}
