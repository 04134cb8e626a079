import { isSpace } from "./words.ts";

/** A heredoc that an instruction opens with `<<NAME`. */
export interface Heredoc {
  name: string;
  /** No part of the name was quoted: COPY and ADD expand variables in the content. */
  expand: boolean;
  /** `<<-`: leading tabs of each line don't count. */
  chomp: boolean;
  content: string;
}

/** A heredoc's opening within a line, from its first digit or `<` up to `end`. */
export interface HeredocOpening extends Omit<Heredoc, "content"> {
  start: number;
  end: number;
}

const endsName = /[\s|&;()<>]/;

/**
 * The heredocs that a logical line opens, left to right. An opening starts a word outside of quotes: `<<EOF`,
 * `3<<-"EOF"`; `a<<b`, `<<<word` and `$((1<<2))` are none. A line whose quotes don't close opens none.
 */
export function heredocOpenings(line: string, escape: string): HeredocOpening[] {
  const found: HeredocOpening[] = [];
  let wordStart = true;
  for (let i = 0; i < line.length; ) {
    const char = line.charAt(i);
    if (char === escape) {
      i += 2;
      wordStart = false;
    } else if (char === "'" || char === '"') {
      const close = closingQuote(line, i, escape);
      if (close < 0) return [];
      i = close + 1;
      wordStart = false;
    } else if (wordStart && /[\d<]/.test(char)) {
      const opening = openingAt(line, i, escape);
      if (opening !== null) found.push(opening);
      i = opening?.end ?? i + 1;
      wordStart = false;
    } else {
      wordStart = isSpace(char);
      i++;
    }
  }
  return found;
}

/** The opening when `text` is nothing but one heredoc word, as COPY's sources and a RUN script are; otherwise null. */
export function soleHeredoc(text: string, escape: string): HeredocOpening | null {
  const [first] = heredocOpenings(text, escape);
  return first?.start === 0 && first.end === text.length ? first : null;
}

/** The content as it is used: without leading tabs for `<<-`. */
export function heredocText(heredoc: Heredoc): string {
  return heredoc.chomp ? heredoc.content.replace(/^\t+/gm, "") : heredoc.content;
}

function closingQuote(line: string, open: number, escape: string): number {
  const quote = line.charAt(open);
  for (let i = open + 1; i < line.length; i++) {
    if (line.charAt(i) === quote) return i;
    if (quote === '"' && line.charAt(i) === escape) i++;
  }
  return -1;
}

function openingAt(line: string, start: number, escape: string): HeredocOpening | null {
  let i = start;
  while (/\d/.test(line.charAt(i))) i++;
  if (!line.startsWith("<<", i) || line.charAt(i + 2) === "<") return null;
  i += 2;
  const chomp = line.charAt(i) === "-";
  if (chomp) i++;
  const spaced = isSpace(line.charAt(i));
  while (isSpace(line.charAt(i))) i++;
  // `$(( 1 << 2 ))` is no heredoc named 2.
  if (spaced && !/[\p{L}_'"]/u.test(line.charAt(i))) return null;
  let name = "";
  let expand = true;
  for (; i < line.length && !endsName.test(line.charAt(i)); i++) {
    const char = line.charAt(i);
    if (char === "'" || char === '"') {
      const close = closingQuote(line, i, escape);
      if (close < 0) return null;
      name += line.slice(i + 1, close);
      expand = false;
      i = close;
    } else if (char === "\\") {
      name += line.charAt(++i);
    } else {
      name += char;
    }
  }
  return name === "" ? null : { name, expand, chomp, start, end: i };
}
