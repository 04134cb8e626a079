import type { Fragment, Sql } from "./scope.ts";

/** A page of a list that is ordered by time, newest first, then by id. `createdAt` is the server's own text. */
export interface Page {
  after: { createdAt: string; id: string } | null;
  limit: number;
}

/** A row with its `created_at` as the server wrote it: with the id, the place for the next page. */
export type Paged<Row> = Row & { cursor: string };

/** A page's rows as clients see them, each with its place. */
export function paged<Raw extends { createdAt: string }, Row>(
  rows: readonly Raw[],
  shown: (raw: Raw) => Row,
): Paged<Row>[] {
  return rows.map((raw) => ({ ...shown(raw), cursor: raw.createdAt }));
}

/** The condition that rows are behind the page's start; its first half is what the index can use. */
export function behind(sql: Sql, page: Page, createdAt: Fragment, id: Fragment): Fragment {
  if (page.after === null) return sql``;
  const { createdAt: at, id: last } = page.after;
  return sql`and ${createdAt} <= ${at}::timestamptz and (${createdAt} < ${at}::timestamptz or ${id} > ${last})`;
}
