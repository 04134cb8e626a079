import type { z } from "zod";
import { BerthError } from "../core/errors.ts";

/** Registries must take manifests of 4 MiB (distribution spec, "Pushing Manifests"); configs are kept to the same. */
export const maxDocumentBytes = 4 * 2 ** 20;

export function invalidImage(what: string, cause?: unknown): BerthError {
  return new BerthError("invalid_image", `The image can't be used: ${what}.`, cause === undefined ? {} : { cause });
}

/** A manifest or config as JSON. @throws BerthError `invalid_image`. */
export function parseJson(bytes: Uint8Array, what: string): object {
  if (bytes.length > maxDocumentBytes) throw invalidImage(`its ${what} is larger than 4 MiB`);
  try {
    const document: unknown = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes), isStorable);
    if (typeof document === "object" && document !== null && !Array.isArray(document)) return document;
  } catch (error) {
    throw invalidImage(`its ${what} is not JSON, or has text that can't be stored`, error);
  }
  throw invalidImage(`its ${what} is not a JSON object`);
}

/** A reviver that refuses what JSON has but neither a database nor a process's arguments: NUL, and half characters. */
function isStorable(key: string, value: unknown): unknown {
  for (const text of typeof value === "string" ? [key, value] : [key]) {
    if (text.includes("\0") || !text.isWellFormed()) throw new SyntaxError("a string has a NUL or half a character");
  }
  return value;
}

/** The document as the schema has it. @throws BerthError `invalid_image`, naming the place that is wrong. */
export function check<T extends z.ZodType>(schema: T, document: object, what: string): z.infer<T> {
  const parsed = schema.safeParse(document);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw invalidImage(`its ${what} is wrong at ${issue?.path.join(".") ?? "its root"}`, parsed.error);
}
