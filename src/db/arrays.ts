/**
 * Arrays of the types that Berth's tables and queries have, of one dimension. The driver would ask each new connection
 * for the list of all array types; when the database goes away during that question, nobody catches its error and the
 * process ends. So the types are written down here (`fetch_types` is off), and a test compares them with the tables.
 */
const elements = {
  "boolean[]": { array: 1000, read: (text: string) => text === "t" },
  "smallint[]": { array: 1005, read: Number },
  "integer[]": { array: 1007, read: Number },
  "text[]": { array: 1009, read: (text: string) => text },
  // As the driver gives single ones: a number of 64 bits may not fit into one of ours.
  "bigint[]": { array: 1016, read: (text: string) => text },
  "double precision[]": { array: 1022, read: Number },
} as const;

/** The array types that queries may use, as `format_type` names them. */
export const arrayTypes: readonly string[] = Object.keys(elements);

/** The driver's `types`, by name. */
export const arrayHandlers = Object.fromEntries(
  Object.entries(elements).map(([name, { array, read }]) => [
    name,
    {
      to: array,
      from: [array],
      serialize: (value: unknown) =>
        Array.isArray(value) ? writeArray(value as Parameters<typeof writeArray>[0]) : value,
      parse: (text: string): unknown => readArray(text).map((item) => (item === null ? null : read(item))),
    },
  ]),
);

/** An array's text, `{"a","b",NULL}`. */
export function writeArray(values: readonly (string | number | boolean | bigint | null)[]): string {
  const items = values.map((value) =>
    value === null ? "NULL" : `"${String(value).replaceAll(/["\\]/g, (special) => `\\${special}`)}"`,
  );
  return `{${items.join(",")}}`;
}

/** The items of an array's text; null where it has NULL. */
export function readArray(text: string): (string | null)[] {
  const items = text.slice(1, -1).matchAll(/"((?:[^"\\]|\\.)*)"|[^,]+/gs);
  return Array.from(items, ([whole, quoted]) => {
    if (quoted !== undefined) return quoted.replaceAll(/\\(.)/gs, "$1");
    return whole === "NULL" ? null : whole;
  });
}
