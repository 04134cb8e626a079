import { z } from "@hono/zod-openapi";
import type { Context } from "hono";
import { HTTPException } from "hono/http-exception";
import type { ContentfulStatusCode } from "hono/utils/http-status";
import { BerthError, type ErrorCode, type InputProblem, toBerthError } from "../core/errors.ts";
import { databaseError } from "../db/scope.ts";

/** An error as clients get it (RFC 9457), with Berth's stable `code`. */
export const Problem = z
  .object({
    type: z.string().openapi({ example: "urn:berth:problem:port_taken" }),
    title: z.string().openapi({ example: "The host port is taken" }),
    status: z.int().openapi({ example: 409 }),
    detail: z.string().openapi({ example: "Host port 8000/tcp is taken by the container web-1." }),
    code: z.string().openapi({ example: "port_taken", description: "Stable; what programs should look at." }),
    requestId: z.string().openapi({ example: "req_0q3xr5kkp8wmz2v9d1hc" }),
    errors: z
      .array(
        z.object({
          pointer: z.string().openapi({
            example: "/ports/0/hostPort",
            description: "Where in the body (JSON pointer); `query/…` and `header/…` for parameters.",
          }),
          detail: z.string(),
        }),
      )
      .optional()
      .openapi({ description: "Each wrong place of the input." }),
    facts: z
      .record(z.string(), z.union([z.string(), z.number()]))
      .optional()
      .openapi({ description: "What belongs to the code, such as the host port that is taken." }),
  })
  .openapi("Problem");

const fromHttp: Readonly<Record<number, ErrorCode>> = {
  400: "invalid_json",
  404: "not_found",
  413: "body_too_large",
  415: "unsupported_media_type",
};

/** Any thrown thing as an error with a code. */
export function asBerthError(thrown: unknown): BerthError {
  if (thrown instanceof HTTPException) {
    return new BerthError(fromHttp[thrown.status] ?? "invalid_request", `${thrown.message}.`, { cause: thrown });
  }
  return toBerthError(databaseError(thrown));
}

/** The answer that tells of an error. */
export function problemResponse(c: Context, error: BerthError, requestId: string): Response {
  const body: z.infer<typeof Problem> = {
    type: `urn:berth:problem:${error.code}`,
    title: error.title,
    status: error.status,
    detail: error.message,
    code: error.code,
    requestId,
    ...(error.problems.length > 0 ? { errors: [...error.problems] } : {}),
    ...(Object.keys(error.facts).length > 0 ? { facts: { ...error.facts } } : {}),
  };
  const headers: Record<string, string> = { "Content-Type": "application/problem+json" };
  if (error.status === 401) headers["WWW-Authenticate"] = 'Bearer realm="berth"';
  if (error.status === 503 || error.status === 429) headers["Retry-After"] = "1";
  return c.body(JSON.stringify(body), error.status as ContentfulStatusCode, headers);
}

/** What zod found wrong, as places and sentences. A field that is not known is named itself, not its object. */
export function inputProblems(error: z.ZodError, prefix: string): InputProblem[] {
  return error.issues.flatMap((issue) => {
    const pointer = prefix + issue.path.map((part) => `/${escapePointer(String(part))}`).join("");
    return issue.code === "unrecognized_keys"
      ? issue.keys.map((key) => ({ pointer: `${pointer}/${escapePointer(key)}`, detail: "There is no such field." }))
      : [{ pointer, detail: sentenceOf(issue.message) }];
  });
}

/** zod's words as a sentence: a field that was left out has no value that could be wrong. */
function sentenceOf(message: string): string {
  const [, needed] = /^Invalid input: expected (.+), received undefined$/.exec(message) ?? [];
  return needed === undefined ? `${message}.` : `Must be given: ${needed} is expected.`;
}

/** A path part in a JSON pointer (RFC 6901, section 3). */
export function escapePointer(part: string): string {
  return part.replaceAll("~", "~0").replaceAll("/", "~1");
}

/** The error about wrong places of the input; the sentence names the first, so that it also helps alone. */
export function invalidRequest(problems: readonly InputProblem[]): BerthError {
  const first = problems[0];
  const where = first === undefined || first.pointer === "" ? "The body" : first.pointer;
  return new BerthError("invalid_request", `${where}: ${first?.detail ?? "is not valid."}`, { problems });
}
