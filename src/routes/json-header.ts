import type { z } from "@hono/zod-openapi";
import { invalidRequest } from "./problem.ts";

/**
 * What a header has that is a JSON object in base64: what must be in no URL when the body is something else.
 * @param shape how the object looks, for the error
 * @throws BerthError `invalid_request`, without what was in it
 */
export function readJsonHeader<Schema extends z.ZodType>(
  schema: Schema,
  name: string,
  shape: string,
  header: string | undefined,
): z.infer<Schema> {
  try {
    return schema.parse(header === undefined ? {} : JSON.parse(Buffer.from(header, "base64").toString("utf8")));
  } catch {
    const detail = `Must be a JSON object, ${shape}, in base64.`;
    throw invalidRequest([{ pointer: `header/${name}`, detail }]);
  }
}
