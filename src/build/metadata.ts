import type { Healthcheck } from "../core/image.ts";

/**
 * The `port/protocol` keys of `EXPOSE 80 53/udp 8000-8010 127.0.0.1:80:8080`: host parts have no meaning in an image.
 * null: not a port.
 */
export function exposedPorts(text: string): string[] | null {
  const match = /^(?:.*:)?(\d{1,5})(?:-(\d{1,5}))?(?:\/(tcp|udp|sctp))?$/i.exec(text);
  if (match === null) return null;
  const first = Number(match[1]);
  const last = match[2] === undefined ? first : Number(match[2]);
  if (first < 1 || last > 65_535 || last < first) return null;
  const protocol = match[3]?.toLowerCase() ?? "tcp";
  return Array.from({ length: last - first + 1 }, (_, i) => `${first + i}/${protocol}`);
}

const signalNames = new Set(
  (
    "HUP INT QUIT ILL TRAP ABRT IOT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CLD CONT STOP TSTP TTIN TTOU " +
    "URG XCPU XFSZ VTALRM PROF WINCH IO POLL PWR SYS"
  ).split(" "),
);

/** Whether the text names a Linux signal: `TERM`, `SIGTERM`, `15`, `RTMIN+3`. */
export function isSignal(text: string): boolean {
  if (/^\d{1,2}$/.test(text)) return Number(text) >= 1 && Number(text) <= 64;
  const name = text.toUpperCase().replace(/^SIG/, "");
  return signalNames.has(name) || /^RTM(?:IN(?:\+\d{1,2})?|AX(?:-\d{1,2})?)$/.test(name);
}

/** Go's `%q` of a list of strings, which image histories show. */
export function goStrings(strings: readonly string[]): string {
  return `[${strings.map((text) => `"${text.replace(needsEscape, goEscape)}"`).join(" ")}]`;
}

/** What Go does not count as printable, quotes and backslashes. */
const needsEscape = /[^\p{L}\p{M}\p{N}\p{P}\p{S} ]|["\\]/gu;
const namedEscapes: Record<string, string> = {
  "\x07": "\\a",
  "\b": "\\b",
  "\t": "\\t",
  "\n": "\\n",
  "\v": "\\v",
  "\f": "\\f",
  "\r": "\\r",
};

function goEscape(character: string): string {
  if (character === '"' || character === "\\") return `\\${character}`;
  const code = character.codePointAt(0) ?? 0;
  const hex = (digits: number) => code.toString(16).padStart(digits, "0");
  const numbered = code < 0x80 ? `\\x${hex(2)}` : code < 0x1_0000 ? `\\u${hex(4)}` : `\\U${hex(8)}`;
  return namedEscapes[character] ?? numbered;
}

/** Go's `%+v` of a health check, which image histories show. */
export function goHealthcheck(check: Healthcheck): string {
  const { Test, Interval = 0, Timeout = 0, StartPeriod = 0, StartInterval = 0, Retries = 0 } = check;
  const times = { Interval, Timeout, StartPeriod, StartInterval };
  const shown = Object.entries(times).map(([name, time]) => `${name}:${goDuration(time)}`);
  return `{Test:[${Test.join(" ")}] ${shown.join(" ")} Retries:${Retries}}`;
}

/** Nanoseconds as Go writes them: `1m30s`, `1.5s`, `500ms`, `0s`. At least a millisecond, unless 0. */
function goDuration(nanoseconds: number): string {
  if (nanoseconds > 0 && nanoseconds < 1e9) return `${nanoseconds / 1e6}ms`;
  const hours = Math.floor(nanoseconds / 3600e9);
  const minutes = Math.floor((nanoseconds % 3600e9) / 60e9);
  const seconds = `${(nanoseconds % 60e9) / 1e9}s`;
  return `${hours > 0 ? `${hours}h` : ""}${hours > 0 || minutes > 0 ? `${minutes}m` : ""}${seconds}`;
}
