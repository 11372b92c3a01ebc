/** Looks settings up: in flags, then the environment, then the file, then the defaults. */
import { codeOf, faultOfFile, isMissing, reasonOf } from "../errors/reason.ts";
import { readTextFile } from "../files/read-file.ts";
import type { Json } from "../istiod/node.ts";
import { ConfigError, NotThereYet } from "./config-error.ts";
import { closest, eitherOf } from "./did-you-mean.ts";
import { SETTINGS, type Setting, type SettingName, variableOf } from "./settings.ts";
import { Invalid, isObject, MissingFile, parseJson, TEXT_FIELDS } from "./syntax.ts";
import { entriesOf, jsonOf, readYaml, textsOf, type Written } from "./yaml.ts";

/** The default path of the file. It need not exist. */
export const CONFIG_FILE = "/etc/kmesh/config.yaml";

/** The flags of the command line: text as typed, booleans for switches, all values of a list. */
export type Flags = Partial<Record<string, string | boolean | string[]>>;

export interface Sources {
  flags: Flags;
  env: Record<string, string | undefined>;
  /** The file's path; `required`: the operator named it; `text`: its content, if it is not written yet. */
  file: { path: string; required: boolean; text?: string };
}

/** The sources of one command. `--config` or KMESH_CONFIG names the file. */
export function sourcesOf(flags: Flags, env: Record<string, string | undefined>): Sources {
  const named = typeof flags.config === "string" ? flags.config : env.KMESH_CONFIG;
  return { flags, env, file: { path: named ?? CONFIG_FILE, required: named !== undefined } };
}

/**
 * What `read` makes of the sources. When their file can't be used, what it makes of the flags and variables alone; `ignored` gets
 * the fault. Throws ConfigError for a wrong flag or variable, and what else `read` throws.
 */
export function readAsFarAsUsable<T>(
  sources: Sources,
  read: (from: Sources) => T,
  ignored: (fault: ConfigError) => void,
): T {
  try {
    return read(sources);
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    const value = read({ ...sources, file: { ...sources.file, text: "" } });
    ignored(error);
    return value;
  }
}

/** The file's values by key. An empty value, ~ or null counts as absent. */
export type FileSettings = ReadonlyMap<string, Written>;

/** Throws ConfigError when the file can't be read or is not a map of settings. */
export function readFile(file: Sources["file"]): FileSettings {
  let text: string;
  try {
    text = file.text ?? readTextFile(file.path);
  } catch (error) {
    if (isMissing(error) && !file.required) return new Map();
    throw new ConfigError(
      `${file.path} ${faultOfFile(error)}`,
      codeOf(error) === "EACCES" && process.geteuid?.() !== 0
        ? "Run it as root, or with sudo."
        : "kmesh install writes one; --config FILE or KMESH_CONFIG names another.",
    );
  }
  let content: Written;
  try {
    content = readYaml(text);
  } catch (error) {
    const [line = "not YAML"] = reasonOf(error).split("\n");
    throw new ConfigError(
      `${file.path} is not valid YAML: ${line.replace(/:$/, "")}`,
      "Correct that line; kmesh config check checks the file.",
    );
  }
  if (content.typed === null || content.typed === undefined) return new Map();
  const entries = entriesOf(content);
  if (!entries) throw new ConfigError(`${file.path} holds no settings`, 'Write one "key: value" a line.');
  return new Map(entries);
}

export function refuseUnknown(file: FileSettings, path: string, problems: ConfigError[]): void {
  const names = Object.keys(SETTINGS);
  for (const key of file.keys()) {
    if (names.includes(key)) continue;
    const near = closest(key, names);
    problems.push(
      new ConfigError(
        `${path}: there is no setting "${key}"`,
        near ? `Did you mean "${near}"?` : `The settings are ${names.join(", ")}.`,
      ),
    );
  }
}

/** The same as plain values that can be written back. Values of unknown keys are texts. */
export function fileValues(file: FileSettings): Record<string, Json> {
  const isSetting = (key: string): key is SettingName => Object.hasOwn(SETTINGS, key);
  return Object.fromEntries(
    [...file].map(([key, each]): [string, Json] => {
      if (each.typed === null || each.typed === undefined) return [key, null];
      return [key, isSetting(key) ? settingOf(key, each) : textsOf(each)];
    }),
  );
}

/** A setting's value in the file. Texts are as written; only settings with numbers have numbers. */
function settingOf(name: SettingName, written: Written): Json {
  const { kind }: Setting = SETTINGS[name];
  if (kind === "json") return jsonOf(written, TEXT_FIELDS);
  if (kind === "switch") return jsonOf(written);
  return (kind === "map" ? mapOf(written) : undefined) ?? textsOf(written);
}

/** Keys and texts; nested maps and lists are kept. Undefined for a value that is not a map. */
function mapOf(written: Written): { readonly [key: string]: Json } | undefined {
  const entries = entriesOf(written)?.map(([key, each]): [string, Json] => {
    const inner = each.typed === null || typeof each.typed === "object";
    return [key, inner ? jsonOf(each) : textsOf(each)];
  });
  return entries && Object.fromEntries(entries);
}

/** Looks a setting up in the four sources and names the source in errors. A wrong value is recorded and counts as absent. */
export class Values {
  readonly #sources: Sources;
  readonly #file: FileSettings;
  readonly #problems: ConfigError[];

  constructor(sources: Sources, file: FileSettings, problems: ConfigError[]) {
    this.#sources = sources;
    this.#file = file;
    this.#problems = problems;
  }

  /** Whether any source has the setting. */
  has(name: SettingName): boolean {
    return this.#find(name) !== undefined;
  }

  text<T>(name: SettingName, parse: (text: string) => T): T | undefined {
    const found = this.#find(name);
    if (found === undefined) return undefined;
    if (typeof found.value !== "string")
      return this.#wrong(`${found.from}: one value is expected`, `${hintOf(name)}.`);
    return this.#parsed(found.from, found.value, parse);
  }

  /** For settings with a valid default. */
  always<T>(name: SettingName, parse: (text: string) => T): T {
    return this.text(name, parse) ?? parse(fallbackOf(name));
  }

  choice<T extends string>(name: SettingName, choices: readonly T[]): T {
    return this.always(name, (text) => {
      const choice = choices.find((each) => each === text);
      if (choice !== undefined) return choice;
      const near = closest(text, choices);
      throw new Invalid(
        `"${text}" is none of ${choices.join(", ")}`,
        near === undefined ? `Write ${eitherOf(choices)}.` : `Did you mean "${near}"?`,
      );
    });
  }

  switch(name: SettingName): boolean {
    const found = this.#find(name);
    if (found === undefined) return false;
    const word = String(found.value).toLowerCase();
    if (["true", "1", "yes", "on"].includes(word)) return true;
    if (!["false", "0", "no", "off", ""].includes(word))
      this.#wrong(`${found.from}: "${word}" is neither true nor false`, "Write true or false.");
    return false;
  }

  list<T>(name: SettingName, parse: (text: string) => T): T[] {
    const found = this.#find(name);
    if (found === undefined) return fallbackOf(name) === "" ? [] : [parse(fallbackOf(name))];
    if (holdsMap(found.value)) {
      this.#wrong(`${found.from}: a list of texts is expected`, `${hintOf(name)}, or a list: [A, B].`);
      return [];
    }
    return partsOf(found.value).flatMap((part) => {
      const value = this.#parsed(found.from, part, parse);
      return value === undefined ? [] : [value];
    });
  }

  /** A map in the file, a JSON object, or a list of KEY=VALUE. */
  map<T>(name: SettingName, parse: (key: string, value: Json) => T): Record<string, T> {
    const found = this.#find(name);
    if (found === undefined) return {};
    const value = this.#parsed(found.from, found.value, (given) => keysAndValues(given, hintOf(name)));
    const entries = Object.entries(value ?? {}).flatMap(([key, each]): [string, T][] => {
      const parsed = this.#parsed(found.from, each, (given) => parse(key, given));
      return parsed === undefined ? [] : [[key, parsed]];
    });
    return Object.fromEntries(entries);
  }

  /** YAML in the file, JSON elsewhere. */
  json<T>(name: SettingName, parse: (value: Json) => T): T | undefined {
    const found = this.#find(name);
    if (found === undefined) return undefined;
    return this.#parsed(found.from, found.value, (value) =>
      parse(typeof value === "string" ? parseJson(value) : (value as Json)),
    );
  }

  #find(name: SettingName): { value: unknown; from: string } | undefined {
    const flag = this.#sources.flags[name];
    if (flag !== undefined) return { value: flag, from: `--${name}` };
    const variable = this.#sources.env[variableOf(name)];
    // A unit file can only unset a variable by an empty value.
    if (variable !== undefined && variable !== "") return { value: variable, from: variableOf(name) };
    const key = this.#file.get(name);
    if (key === undefined || key.typed === null || key.typed === undefined) return undefined;
    return { value: settingOf(name, key), from: `${this.#sources.file.path}, key ${name}` };
  }

  #parsed<V, T>(from: string, value: V, parse: (value: V) => T): T | undefined {
    try {
      return parse(value);
    } catch (error) {
      if (!(error instanceof Invalid)) throw error;
      const message = `${from}: ${error.message}`;
      if (error instanceof MissingFile) this.#problems.push(new NotThereYet(message, error.next, error.path));
      else this.#wrong(message, error.next);
      return undefined;
    }
  }

  #wrong(message: string, next: string): undefined {
    this.#problems.push(new ConfigError(message, next));
    return undefined;
  }
}

/** A map, or a list with anything but texts in it. */
function holdsMap(value: unknown): boolean {
  return (Array.isArray(value) ? value : [value]).some((each) => typeof each === "object");
}

/** Lists: a variable has commas; flags and keys repeat, or have commas. */
function partsOf(value: unknown): string[] {
  return (Array.isArray(value) ? value : [value])
    .flatMap((part) => String(part).split(","))
    .map((part) => part.trim())
    .filter((part) => part !== "");
}

function keysAndValues(value: unknown, hint: string): Record<string, Json> {
  if (typeof value === "object" && value !== null && !Array.isArray(value))
    return value as Record<string, Json>;
  const next = `${hint}, or in the file a key and a value a line.`;
  const [first] = Array.isArray(value) ? value : [value];
  if (typeof first === "string" && first.startsWith("{")) {
    if (isObject(parseJson(first))) return mapOf(readYaml(first)) ?? {};
    throw new Invalid("it is not a JSON object", next);
  }
  const found = new Map<string, string[]>();
  for (const part of partsOf(value)) {
    const equals = part.indexOf("=");
    if (equals < 1) throw new Invalid(`"${part}" is not KEY=VALUE`, next);
    const key = part.slice(0, equals);
    found.set(key, [...(found.get(key) ?? []), part.slice(equals + 1)]);
  }
  // A repeated key has a list.
  return Object.fromEntries([...found].map(([key, all]) => [key, all.length === 1 ? (all[0] ?? "") : all]));
}

function hintOf(name: SettingName): string {
  const setting: Setting = SETTINGS[name];
  return `Write ${setting.hint ?? "true or false"}`;
}

function fallbackOf(name: SettingName): string {
  const setting: Setting = SETTINGS[name];
  return setting.fallback ?? "";
}
