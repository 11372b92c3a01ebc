/** The text of the configuration file. */
import { isDeepStrictEqual } from "node:util";
import { type Document, isMap, isScalar, parseDocument, stringify } from "yaml";
import { ConfigError } from "../../config/config-error.ts";
import type { DecidedSettings } from "../../config/from-istioctl.ts";
import { FOLDERS, SETTINGS, type Setting, type SettingName } from "../../config/settings.ts";
import { fileValues, readFile } from "../../config/sources.ts";

/** Example values of settings whose default or hint is not a value. */
const EXAMPLES: Partial<Record<string, string>> = {
  istiod: "istiod.istio-system.svc:15012",
  ca: "/etc/kmesh/root-cert.pem",
  token: "/etc/kmesh/istio-token",
  ip: "[192.0.2.10]",
  locality: "region/zone",
  network: "network1",
  hosts: "{istiod.istio-system.svc: 192.0.2.1}",
  "ca-server": "istiod.istio-system.svc:15012",
  name: "vm1",
  "service-ip": "203.0.113.7",
  "mesh-id": "mesh1",
  labels: "{app: shop}",
  "workload-name": "shop",
  "workload-group": "shop",
  "workload-entry": "shop-vm1",
  ports: "[{name: http, containerPort: 8080}]",
  "readiness-probe": "{httpGet: {path: /ready, port: 8080}}",
  metadata: "{TEAM: blue}",
  unit: "[nginx.service, shop.service]",
  cgroup: "[/system.slice/shop.service]",
  exclude: "[192.0.2.0/24, 198.51.100.7:443]",
  "trust-domain-aliases": "[old.example]",
  "dns-exclude": "[corp.example]",
  metrics: "127.0.0.1:15020",
  "access-log": "journal",
  "access-log-filter": "[failures, unit=shop.service]",
  "access-log-interval": "5m",
  "admin-group": "adm",
};

/** A configuration file that explains every setting. Settings that are not in `values` are commented out. */
export function configTemplate(values: DecidedSettings = {}): string {
  const folders: readonly string[] = FOLDERS;
  const entries = Object.entries<Setting>(SETTINGS)
    // The unit's sandbox allows only the default folders.
    .filter(([name]) => !folders.includes(name) || values[name as SettingName] !== undefined)
    .map(([name, setting]) => {
      const value = values[name as SettingName];
      if (value !== undefined) return `# ${aboutOf(setting)}\n${yaml({ [name]: value })}`;
      const example = EXAMPLES[name] ?? (setting.kind === "switch" ? "true" : (setting.fallback ?? ""));
      return `# ${aboutOf(setting)}\n#${name}: ${example}\n`;
    });
  return [
    "# kmesh's settings. Needed are istiod and ca (or plaintext); `kmesh run --help` lists all.",
    "# After a change: kmesh config check, then systemctl reload kmesh; its log says when a restart is needed. Neither",
    "# touches a connection.",
    "",
    ...entries,
  ].join("\n");
}

/**
 * The text of the file `path` with the settings `decided`: undefined removes a setting, others and comments stay.
 * `before` is the present text, undefined without a file. Throws ConfigError when it is not a configuration.
 */
export function decidedConfig(
  path: string,
  before: string | undefined,
  decided: DecidedSettings,
): { text: string; changed: SettingName[] } {
  const names = Object.keys(decided) as SettingName[];
  if (before === undefined)
    return { text: configTemplate(decided), changed: names.filter((name) => decided[name] !== undefined) };
  const document = parseDocument(before);
  const content = contentOf(path, before);
  const values = new Map<string, unknown>(Object.entries(content));
  const changed = names.filter((name) => !isDeepStrictEqual(values.get(name) ?? undefined, decided[name]));
  if (changed.length === 0) return { text: before, changed };
  const unknown = [...values.keys()].some((name) => !Object.hasOwn(SETTINGS, name));
  if (isUncommented(before) && !unknown) return { text: configTemplate({ ...content, ...decided }), changed };
  for (const name of changed) {
    const value = decided[name];
    if (value === undefined) remove(document, name);
    else if (values.has(name)) document.set(name, document.createNode(value));
    else {
      const key = document.createNode(name);
      key.commentBefore = ` ${aboutOf(SETTINGS[name])}`;
      document.add(document.createPair(key, value));
    }
  }
  return { text: document.toString({ lineWidth: 0 }), changed };
}

/** Scalars as written in the file, so that they can be written back unchanged. */
function contentOf(path: string, text: string): Record<string, unknown> {
  try {
    return fileValues(readFile({ path, required: true, text }));
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    throw new ConfigError(error.message, `Mend it, or move it away: mv ${path} ${path}.old`);
  }
}

/** Whether the file has no comments but kmesh's own: then it can be written anew. */
function isUncommented(text: string): boolean {
  const ours = new Set(configTemplate().split("\n"));
  return text.split("\n").every((line) => (line.startsWith("#") ? ours.has(line) : !line.includes("#")));
}

/** Removes a key. A comment before it moves to the next key, because it may describe all that follows. */
function remove(document: Document.Parsed, name: SettingName): void {
  const { contents } = document;
  if (!isMap(contents)) return;
  const at = contents.items.findIndex(({ key }) => isScalar(key) && key.value === name);
  const [gone] = at < 0 ? [] : contents.items.splice(at, 1);
  const comment = gone?.key.commentBefore;
  if (!comment) return;
  const next = contents.items[at]?.key;
  if (next) next.commentBefore = [comment, next.commentBefore].filter(Boolean).join("\n");
  else document.comment = [comment, document.comment].filter(Boolean).join("\n");
}

function aboutOf(setting: Setting): string {
  return setting.fallback ? `${setting.about} (default: ${setting.fallback})` : setting.about;
}

function yaml(value: unknown): string {
  return stringify(value, { lineWidth: 0 });
}
