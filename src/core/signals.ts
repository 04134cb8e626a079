import { constants } from "node:os";

const numbers: Readonly<Record<string, number>> = constants.signals;

/** The number of `SIGTERM`, `TERM` or `15`; null when there is no such signal. */
export function signalNumber(text: string): number | null {
  if (/^\d{1,2}$/.test(text)) {
    const number = Number(text);
    return number >= 1 && number <= 64 ? number : null;
  }
  const name = text.toUpperCase();
  const known = numbers[name.startsWith("SIG") ? name : `SIG${name}`];
  return known ?? null;
}
