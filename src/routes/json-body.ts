import type { MiddlewareHandler } from "hono";
import { bodyLimit } from "hono/body-limit";
import { BerthError, type InputProblem } from "../core/errors.ts";
import type { Env } from "./context.ts";
import { escapePointer, invalidRequest } from "./problem.ts";

/** Bytes that a JSON body may have. */
export const maxJsonBytes = 1024 * 1024;

/** How deep objects and arrays of a body may be nested; none of ours come near. */
const maxDepth = 32;

const mediaTypeOf = (header: string | undefined) => (header ?? "").split(";")[0]?.trim().toLowerCase() ?? "";

const limitSize = bodyLimit({
  maxSize: maxJsonBytes,
  onError: () => {
    throw new BerthError("body_too_large", `A JSON body has at most ${String(maxJsonBytes)} bytes.`);
  },
});

/**
 * Checks a JSON body before its schema does: its size, that it is JSON, and what a schema would not see or Postgres could
 * not store: `__proto__` as a key, NUL characters, halves of surrogate pairs, and deep nesting. Bodies of the media types
 * in `others` pass unread.
 */
export function jsonBody(required: boolean, others: readonly string[]): MiddlewareHandler<Env> {
  return async (c, next) => {
    const mediaType = mediaTypeOf(c.req.header("content-type"));
    if (others.includes(mediaType)) return next();
    return limitSize(c, async () => {
      const text = await c.req.text();
      if (text === "") {
        if (required) throw new BerthError("invalid_json", "The body is empty; JSON is expected.");
        // Read as JSON only when it is said to be JSON. hono keeps promises here, whatever its type says.
        if (mediaType !== "") c.req.bodyCache.text = Promise.resolve("{}") as unknown as string;
        return next();
      }
      if (mediaType !== "application/json") {
        const allowed = ["application/json", ...others].join(", ");
        throw new BerthError(
          "unsupported_media_type",
          `Content-Type must be ${allowed}${mediaType === "" ? "; there was none" : `; it was ${mediaType}`}.`,
        );
      }
      const problems = unsafePlaces(parse(text));
      if (problems.length > 0) throw invalidRequest(problems);
      return next();
    });
  };
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : "it can't be parsed";
    throw new BerthError("invalid_json", `The body is not valid JSON: ${why}.`, { cause });
  }
}

const unstorable = (text: string) => text.includes("\0") || !text.isWellFormed();

/** The places of a value that no field may hold. Walks without recursion, whatever the nesting. */
export function unsafePlaces(root: unknown): InputProblem[] {
  const problems: InputProblem[] = [];
  const open: { value: unknown; pointer: string; depth: number }[] = [{ value: root, pointer: "", depth: 0 }];
  for (let next = open.pop(); next !== undefined && problems.length < 20; next = open.pop()) {
    const { value, pointer, depth } = next;
    if (typeof value === "string") {
      if (unstorable(value)) problems.push({ pointer, detail: "Text must not have NUL or broken Unicode characters." });
    } else if (typeof value === "object" && value !== null) {
      if (depth >= maxDepth) {
        problems.push({ pointer: pointer.slice(0, 200), detail: `Nested deeper than ${String(maxDepth)} levels.` });
        continue;
      }
      for (const [key, inner] of Object.entries(value)) {
        const place = `${pointer}/${escapePointer(key.slice(0, 200))}`;
        if (key === "__proto__" || unstorable(key))
          problems.push({ pointer: place, detail: "There is no such field." });
        else open.push({ value: inner, pointer: place, depth: depth + 1 });
      }
    }
  }
  return problems;
}
