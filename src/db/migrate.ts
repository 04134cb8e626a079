import { readdir, readFile } from "node:fs/promises";
import type postgres from "postgres";

const folder = new URL("./migrations/", import.meta.url);

/** The names of all migrations, in order. */
export async function migrationFiles(): Promise<string[]> {
  return (await readdir(folder)).filter((name) => name.endsWith(".sql")).sort();
}

/**
 * Brings the schema up to date: each file of migrations/ once, in order, each in one transaction with its row in
 * berth_migrations. Safe to run from several processes at once (an advisory lock). `apiLogin`: let berth_api log in,
 * as the embedded database's peer authentication needs.
 */
export async function migrate(sql: postgres.Sql, more: { apiLogin?: boolean } = {}): Promise<number> {
  const files = await migrationFiles();
  return sql.begin(async (tx) => {
    await tx`select pg_advisory_xact_lock(hashtext('berth_migrations'))`;
    await tx`create table if not exists berth_migrations (name text primary key, at timestamptz not null default now())`;
    const done = new Set((await tx<{ name: string }[]>`select name from berth_migrations`).map((row) => row.name));
    const missing = files.filter((name) => !done.has(name));
    for (const name of missing) {
      await tx.unsafe(await readFile(new URL(name, folder), "utf8"));
      await tx`insert into berth_migrations (name) values (${name})`;
    }
    if (missing.length > 0 && more.apiLogin === true) await tx`alter role berth_api login`;
    return missing.length;
  });
}
