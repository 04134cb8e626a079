import type { Passage } from "./passage.ts";
import { dockerfileError } from "./source.ts";

export function isSpace(char: string): boolean {
  return char === " " || (char !== "" && /\s/.test(char));
}

/** Words between white space; quotes have no meaning (FROM, EXPOSE, and the shell form of COPY, ADD, VOLUME). */
export function splitSpaces(passage: Passage): Passage[] {
  return [...passage.text.matchAll(/\S+/g)].map((match) => passage.slice(match.index, match.index + match[0].length));
}

/**
 * Words between white space outside of quotes; quotes and escapes stay in the words, for the expansion to take off
 * (ENV, LABEL, ARG). An unclosed quote reaches to the end.
 */
export function splitWords(passage: Passage, escape: string): Passage[] {
  const { text } = passage;
  const words: Passage[] = [];
  let start = -1;
  let quote = "";
  for (let i = 0; i < text.length; i++) {
    const char = text.charAt(i);
    if (start < 0) {
      if (isSpace(char)) continue;
      start = i;
    } else if (quote === "" && isSpace(char)) {
      words.push(passage.slice(start, i));
      start = -1;
      continue;
    }
    if (quote !== "" && char === quote) quote = "";
    else if (quote === "" && (char === "'" || char === '"')) quote = char;
    else if (char === escape && quote !== "'") i++;
  }
  if (start >= 0) words.push(passage.slice(start));
  return words;
}

/**
 * The strings of a JSON array, or null when the text is no JSON array: then it is the shell form.
 * @throws BerthError when it is an array that holds something other than strings.
 */
export function jsonStrings(passage: Passage): string[] | null {
  if (!passage.text.trimStart().startsWith("[")) return null;
  let value: unknown;
  try {
    value = JSON.parse(passage.text);
  } catch {
    return null;
  }
  if (!Array.isArray(value)) return null;
  const items: unknown[] = value;
  return items.map((item, index) => {
    if (typeof item === "string") return item;
    throw dockerfileError(passage.at(), `element ${index + 1} of the JSON array must be a string.`);
  });
}

/** A flag in front of an instruction's arguments, `--name` or `--name=value`; quotes are taken off. */
export interface Flag {
  name: string;
  value: string | null;
  passage: Passage;
}

/** Splits the flags off the front of an instruction's arguments; `--` alone ends them. */
export function takeFlags(passage: Passage, escape: string): { flags: Flag[]; rest: Passage } {
  const flags: Flag[] = [];
  let rest = passage.trim();
  while (rest.text.startsWith("--")) {
    const end = wordEnd(rest.text, escape);
    const word = rest.slice(0, end);
    rest = rest.slice(end).trim();
    if (word.text === "--") break;
    const plain = unquote(word.text, escape);
    const equals = plain.indexOf("=");
    flags.push({
      name: equals < 0 ? plain.slice(2) : plain.slice(2, equals),
      value: equals < 0 ? null : plain.slice(equals + 1),
      passage: word,
    });
  }
  return { flags, rest };
}

function wordEnd(text: string, escape: string): number {
  let quote = "";
  for (let i = 0; i < text.length; i++) {
    const char = text.charAt(i);
    if (char === escape) i++;
    else if (quote !== "") quote = char === quote ? "" : quote;
    else if (char === "'" || char === '"') quote = char;
    else if (isSpace(char)) return i;
  }
  return text.length;
}

function unquote(text: string, escape: string): string {
  let plain = "";
  let quote = "";
  for (let i = 0; i < text.length; i++) {
    const char = text.charAt(i);
    if (char === escape) plain += text.charAt(++i);
    else if (quote !== "" ? char === quote : char === "'" || char === '"') quote = quote === "" ? char : "";
    else plain += char;
  }
  return plain;
}
