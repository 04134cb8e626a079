import { BerthError } from "../core/errors.ts";

/** A text that instructions come from: a Dockerfile, or the triggers of a base image. */
export interface Source {
  /** How errors call it: `Dockerfile`, or `ONBUILD of debian:12`. */
  name: string;
  /** Physical lines without their line ends. */
  lines: readonly string[];
}

/** A place in a source; line and column count from 1, columns in UTF-16 units. */
export interface Location {
  source: Source;
  line: number;
  column: number;
}

const shownWidth = 120;

/**
 * An `invalid_dockerfile` error that shows the line and points at the column:
 *
 *     Dockerfile:3:1: there is no instruction RNU; did you mean RUN?
 *       3 | RNU make
 *         | ^
 *
 * Long lines are cut around the column, so that the message stays short whatever the input was.
 */
export function dockerfileError(at: Location, message: string): BerthError {
  const line = at.source.lines[at.line - 1] ?? "";
  const from = Math.max(0, Math.min(at.column - 1, line.length) - shownWidth / 2);
  const shown = line.slice(from, from + shownWidth).replace(/[^\P{C}\t]/gu, "?");
  const gutter = String(at.line);
  // A tab stays a tab in the line below, so that the mark stands under its character.
  const lead = shown.slice(0, at.column - 1 - from).replace(/[^\t]/g, " ");
  return new BerthError(
    "invalid_dockerfile",
    `${at.source.name}:${at.line}:${at.column}: ${message}\n  ${gutter} | ${shown}\n  ${" ".repeat(gutter.length)} | ${lead}^`,
    { facts: { line: at.line, column: at.column } },
  );
}

/** A short, printable, quoted form of untrusted text for messages. */
export function quoted(text: string): string {
  return JSON.stringify(text.length > 80 ? `${text.slice(0, 77)}...` : text);
}
