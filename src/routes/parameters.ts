import { z } from "@hono/zod-openapi";
import { BerthError } from "../core/errors.ts";
import { idPrefixes, isId, type Noun } from "../core/ids.ts";
import { namePattern } from "../core/names.ts";
import type { Page, Paged } from "../db/page.ts";
import { invalidRequest } from "./problem.ts";

/** The id of a noun as a path parameter. What has no id's form does not exist: 404, as for any unknown id. */
export function idParam(noun: Noun, names: "id" | "id or name" = "id") {
  return z.object({
    id: z
      .string()
      .refine((text) => isId(noun, text) || (names === "id or name" && namePattern.test(text)))
      .openapi({
        param: { name: "id", in: "path" },
        description: names === "id" ? `The ${noun}'s id.` : `The ${noun}'s id or name.`,
        example: `${idPrefixes[noun]}_0q3xr5kkp8wmz2v9d1hc`,
      }),
  });
}

/** A query parameter that is given zero, one or several times. */
export function repeated<S extends z.ZodType>(item: S) {
  return z.preprocess(
    (value): unknown => (value === undefined ? [] : Array.isArray(value) ? value : [value]),
    z.array(item).max(100),
  );
}

/** `true` or `false` in the query. */
export const flag = (fallback: boolean) =>
  z
    .enum(["true", "false"])
    .default(fallback ? "true" : "false")
    .transform((text) => text === "true")
    .openapi({ type: "boolean" });

/** A whole number in the query. */
export const count = (min: number, max: number) =>
  z
    .string()
    .regex(/^\d{1,15}$/, "Must be a whole number")
    .transform(Number)
    .pipe(z.int().min(min).max(max))
    .openapi({ type: "integer", minimum: min, maximum: max });

const labelPair = z.string().regex(/^[^=]{1,255}=[^]{0,1024}$/, "Must be KEY=VALUE");

/** `label` as a filter, each `KEY=VALUE`. */
export const labelFilter = repeated(labelPair)
  .transform((pairs) =>
    Object.fromEntries(pairs.map((pair) => [pair.slice(0, pair.indexOf("=")), pair.slice(pair.indexOf("=") + 1)])),
  )
  .openapi({
    type: "array",
    items: { type: "string" },
    description: "Only what has this label, `KEY=VALUE`. Repeated: all of them.",
    example: ["tier=web"],
  });

/** What every list takes. */
export const pageQuery = {
  limit: count(1, 500)
    .optional()
    .openapi({ type: "integer", minimum: 1, maximum: 500, default: 50, description: "How many items at most." }),
  cursor: z.string().max(300).optional().openapi({ description: "`nextCursor` of the page before." }),
};

const cursorShape = z.tuple([z.string().regex(/^\d{4}-[\d :.+-]{6,40}$/), z.string().regex(/^[0-9a-z_:]{1,80}$/)]);

/** The page that the query asks for, with one row more than it shows: whether there is a next one. */
export function pageOf(query: { limit?: number | undefined; cursor?: string | undefined }): Page {
  return { after: query.cursor === undefined ? null : parseCursor(query.cursor), limit: (query.limit ?? 50) + 1 };
}

function parseCursor(text: string): Page["after"] {
  try {
    const [createdAt, id] = cursorShape.parse(JSON.parse(Buffer.from(text, "base64url").toString("utf8")));
    return { createdAt, id };
  } catch {
    throw invalidRequest([{ pointer: "query/cursor", detail: "Is not a `nextCursor` that a list answered." }]);
  }
}

/** A list's answer: the items, and the cursor of the next page when there are more. */
export function listOf<Row, Item>(
  page: Page,
  rows: readonly Paged<Row>[],
  idOf: (row: Row) => string,
  view: (row: Row) => Item,
): { items: Item[]; nextCursor: string | null } {
  const shown = rows.slice(0, page.limit - 1);
  const last = rows.length >= page.limit ? shown.at(-1) : undefined;
  const nextCursor =
    last === undefined ? null : Buffer.from(JSON.stringify([last.cursor, idOf(last)])).toString("base64url");
  return { items: shown.map((row) => view(withoutPlace(row))), nextCursor };
}

/** The row alone: its place is for `nextCursor`. */
function withoutPlace<Row>(row: Paged<Row>): Row {
  const rest: Row & { cursor?: string } = { ...row };
  delete rest.cursor;
  return rest;
}

/** The schema of a list. */
export function listSchema<S extends z.ZodType>(name: string, item: S) {
  return z
    .object({
      items: z.array(item),
      nextCursor: z.string().nullable().openapi({ description: "For `cursor`; null on the last page.", example: null }),
    })
    .openapi(name);
}

/** The answer to what does not exist, is another project's, or was never an id: always the same. */
export function notFound(noun: string): BerthError {
  return new BerthError("not_found", `There is no such ${noun}.`);
}
