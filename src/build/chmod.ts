const octal = /^[0-7]{1,5}$/;
const clause = /^([ugoa]*)((?:[-+=][rwxXst]*)+)$/;

/** Whether the text is a mode that `applyChmod` takes: octal up to 7777, or symbolic as `u=rwX,go-w`. */
export function isChmod(text: string): boolean {
  return octal.test(text) ? Number.parseInt(text, 8) <= 0o7777 : text.split(",").every((part) => clause.test(part));
}

const masks: Readonly<Record<string, number>> = { u: 0o4700, g: 0o2070, o: 0o1007 };
const bits: Readonly<Record<string, number>> = { r: 0o444, w: 0o222, x: 0o111, s: 0o6000, t: 0o1000 };

/** The mode after a chmod (chmod(1), without a umask); `chmod` passed `isChmod`. */
export function applyChmod(chmod: string, mode: number, isDirectory: boolean): number {
  if (octal.test(chmod)) return Number.parseInt(chmod, 8);
  let result = mode;
  for (const part of chmod.split(",")) {
    const [, who = "", actions = ""] = clause.exec(part) ?? [];
    const mask =
      who === "" || who.includes("a") ? 0o7777 : Array.from(who).reduce((sum, letter) => sum | (masks[letter] ?? 0), 0);
    for (const [, operator, letters = ""] of actions.matchAll(/([-+=])([rwxXst]*)/g)) {
      let value = 0;
      for (const letter of letters) {
        if (letter === "X") value |= isDirectory || (result & 0o111) !== 0 ? 0o111 : 0;
        else value |= bits[letter] ?? 0;
      }
      if (operator === "+") result |= value & mask;
      else if (operator === "-") result &= ~(value & mask);
      else result = (result & ~mask) | (value & mask);
    }
  }
  return result & 0o7777;
}
