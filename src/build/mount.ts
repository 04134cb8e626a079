import { posix } from "node:path";
import type { CopyOrigin } from "./origin.ts";
import { resolvePath } from "./paths.ts";
import { dockerfileError, type Location, quoted } from "./source.ts";
import { didYouMean } from "./suggest.ts";

/** A `--mount` of RUN. Paths are absolute and clean; `origin` is where bind and cache mounts take their content from. */
export type Mount =
  | { type: "bind"; target: string; origin: CopyOrigin; source: string; readOnly: boolean }
  | {
      type: "cache";
      target: string;
      id: string;
      sharing: "shared" | "private" | "locked";
      readOnly: boolean;
      /** What an empty cache begins with; null: nothing. */
      origin: CopyOrigin | null;
      source: string;
      mode: number;
      uid: number;
      gid: number;
    }
  | { type: "tmpfs"; target: string; size: number | null }
  | {
      type: "secret";
      id: string;
      /** Where the file is; null: only in the environment. */
      target: string | null;
      env: string | null;
      required: boolean;
      mode: number;
      uid: number;
      gid: number;
    };

const keys: Readonly<Record<string, string>> = {
  ...Object.fromEntries(
    [
      "type",
      "from",
      "source",
      "target",
      "readonly",
      "id",
      "sharing",
      "required",
      "size",
      "mode",
      "uid",
      "gid",
      "env",
    ].map((key) => [key, key]),
  ),
  src: "source",
  dst: "target",
  destination: "target",
  ro: "readonly",
  rw: "readwrite",
  readwrite: "readwrite",
};

const allowed: Readonly<Record<Mount["type"] | "ssh", readonly string[]>> = {
  bind: ["from", "source", "target", "readonly"],
  cache: ["from", "source", "target", "readonly", "id", "sharing", "mode", "uid", "gid"],
  tmpfs: ["target", "size"],
  secret: ["source", "id", "target", "required", "mode", "uid", "gid", "env"],
  ssh: ["source", "id", "target", "required", "mode", "uid", "gid"],
};

/** What `parseMount` must know of the stage: how words expand, the working directory, and what `from` names. */
export interface MountContext {
  expand: (text: string) => string;
  cwd: string;
  origin: (from: string) => CopyOrigin;
}

/** The value of `from` in a mount as written (it is never expanded), or null. */
export function mountFrom(text: string): string | null {
  const field = splitCsv(text).find((part) => /^from=/i.test(part));
  return field === undefined ? null : field.slice("from=".length);
}

/**
 * Parses `type=cache,target=/x,…` (CSV). null: an ssh mount that the step can do without, for a build has no agent.
 * @throws BerthError naming the field that is wrong.
 */
export function parseMount(text: string, at: Location, context: MountContext): Mount | null {
  const options = readOptions(text, at, context.expand);
  const type = options.get("type") ?? "bind";
  if (type !== "bind" && type !== "cache" && type !== "tmpfs" && type !== "secret" && type !== "ssh") {
    throw dockerfileError(at, `there is no mount type ${quoted(type)}${didYouMean(type, Object.keys(allowed)) || "."}`);
  }
  for (const key of options.keys()) {
    if (key !== "type" && !allowed[type].includes(key))
      throw dockerfileError(at, `a ${type} mount has no option ${key}.`);
  }
  const number = (key: string, base: 8 | 10, fallback: number) => readNumber(options.get(key), key, base, fallback, at);
  const owner = { uid: number("uid", 10, 0), gid: number("gid", 10, 0) };
  const from = options.get("from");
  const target = options.get("target");
  if (type === "ssh") {
    if (!readBoolean(options.get("required"), "required", false, at)) return null;
    throw dockerfileError(
      at,
      "a build has no ssh agent, so no ssh mount can be required; use a secret mount for a key.",
    );
  }
  if (type === "secret") {
    const id = options.get("id") ?? options.get("source") ?? target?.split("/").pop() ?? "";
    if (id === "") throw dockerfileError(at, "a secret mount needs an id or a target.");
    const env = options.get("env") ?? null;
    const path = target ?? (env === null ? `/run/secrets/${posix.basename(id)}` : null);
    return {
      type,
      id,
      target: path === null ? null : resolvePath(context.cwd, path),
      env: env === "" ? id : env,
      required: readBoolean(options.get("required"), "required", false, at),
      mode: number("mode", 8, 0o400),
      ...owner,
    };
  }
  const path = resolvePath(context.cwd, target ?? "");
  if (path === "/") throw dockerfileError(at, "a mount can't cover the root directory.");
  if (type === "tmpfs") return { type, target: path, size: readSize(options.get("size"), at) };
  const source = resolvePath("/", options.get("source") ?? "/");
  if (type === "bind") {
    const readOnly = readBoolean(options.get("readonly"), "readonly", true, at);
    return {
      type,
      target: path,
      origin: from === undefined ? { kind: "context" } : context.origin(from),
      source,
      readOnly,
    };
  }
  const sharing = options.get("sharing") ?? "shared";
  if (sharing !== "shared" && sharing !== "private" && sharing !== "locked") {
    throw dockerfileError(at, `sharing must be shared, private or locked, not ${quoted(sharing)}.`);
  }
  return {
    type,
    target: path,
    id: options.get("id") ?? posix.normalize(target ?? ""),
    sharing,
    readOnly: readBoolean(options.get("readonly"), "readonly", false, at),
    origin: from === undefined ? null : context.origin(from),
    source,
    mode: number("mode", 8, 0o755),
    ...owner,
  };
}

function readOptions(text: string, at: Location, expand: (text: string) => string): Map<string, string> {
  const options = new Map<string, string>();
  for (const field of splitCsv(text)) {
    const equals = field.indexOf("=");
    const written = (equals < 0 ? field : field.slice(0, equals)).toLowerCase();
    const key = Object.hasOwn(keys, written) ? keys[written] : undefined;
    if (key === undefined) {
      throw dockerfileError(
        at,
        `a mount has no option ${quoted(written)}${didYouMean(written, Object.keys(keys)) || "."}`,
      );
    }
    if (equals < 0 && !["readonly", "readwrite", "required"].includes(key)) {
      throw dockerfileError(at, `the mount option ${key} needs a value: ${key}=….`);
    }
    const raw = equals < 0 ? "true" : field.slice(equals + 1);
    const value = key === "from" ? raw : expand(raw);
    if (key === "readwrite") options.set("readonly", String(!readBoolean(value, written, true, at)));
    else options.set(key, key === "type" || key === "sharing" ? value.toLowerCase() : value);
  }
  return options;
}

/** CSV with double quotes, as in `type=bind,"source=a,b"`. */
function splitCsv(text: string): string[] {
  return [...text.matchAll(/("(?:[^"]|"")*"|[^,]*)(?:,|$)/g)]
    .map(([, field = ""]) => (field.startsWith('"') ? field.slice(1, -1).replaceAll('""', '"') : field))
    .filter((field) => field !== "");
}

function readBoolean(text: string | undefined, key: string, fallback: boolean, at: Location): boolean {
  if (text === undefined) return fallback;
  if (/^(?:true|1|t)$/i.test(text)) return true;
  if (/^(?:false|0|f)$/i.test(text)) return false;
  throw dockerfileError(at, `${key} must be true or false, not ${quoted(text)}.`);
}

function readNumber(text: string | undefined, key: string, base: 8 | 10, fallback: number, at: Location): number {
  if (text === undefined) return fallback;
  const valid = base === 8 ? /^[0-7]{1,5}$/ : /^\d{1,5}$/;
  const value = Number.parseInt(text, base);
  if (!valid.test(text) || value > 65_535) throw dockerfileError(at, `${key} can't be ${quoted(text)}.`);
  return value;
}

function readSize(text: string | undefined, at: Location): number | null {
  if (text === undefined) return null;
  const match = /^(\d{1,15})\s*([bkmgt]?)(?:i?b)?$/i.exec(text);
  if (match === null) throw dockerfileError(at, `size must be bytes or such as 64m, not ${quoted(text)}.`);
  return Number(match[1]) * 1024 ** Math.max(0, "bkmgt".indexOf((match[2] ?? "").toLowerCase() || "b"));
}
