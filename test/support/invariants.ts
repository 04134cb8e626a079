import { existsSync, readdirSync } from "node:fs";
import type postgres from "postgres";
import type { Config } from "../../src/config.ts";
import { leftovers } from "./leftovers.ts";

/** What is compared: an instance's rows, and what its host has. */
export interface Compared {
  sql: postgres.Sql;
  config: Pick<Config, "instance" | "runDir" | "dataDir">;
}

/**
 * What is wrong between the rows and the host once nothing is under way, whatever faults there were before; nothing, when
 * every job has ended once and as its build says, no line of a log is missing, and the host has exactly what the
 * containers' rows stand for. The worker must have ended cleanly: what it keeps ready for later starts belongs to no row.
 */
export async function violations({ sql, config }: Compared): Promise<string[]> {
  return [...(await wrongJobs(sql)), ...(await wrongBuilds(sql)), ...(await wrongHost({ sql, config }))];
}

async function wrongJobs(sql: postgres.Sql): Promise<string[]> {
  // How a deployment went, its own events tell.
  const rows = await sql<{ id: string; kind: string; status: string; attempt: number; ends: number }[]>`
    select * from (
      select j.id, kind, status, attempt, max_attempts, (
        select count(*)::int from events e where e.subject_id = coalesce(j.subject_id, j.id)
          and e.type in (kind || '.succeeded', kind || '.failed', kind || '.cancelled')) ends from jobs j) j
    where status in ('queued', 'running') or attempt > max_attempts or (ends <> 1 and kind <> 'deploy')`;
  return rows.map(
    ({ id, kind, status, attempt, ends }) =>
      `the ${kind} job ${id} is ${status} at attempt ${String(attempt)} and has told of ${String(ends)} ends`,
  );
}

async function wrongBuilds(sql: postgres.Sql): Promise<string[]> {
  const unequal = await sql<{ id: string; build: string; job: string }[]>`
    select b.id, b.status build, j.status job from builds b join jobs j on j.id = b.job_id where b.status <> j.status`;
  const gaps = await sql<{ id: string; lines: number; last: number }[]>`
    select build_id id, count(*)::int lines, max(seq)::int last from build_logs group by build_id having count(*) <> max(seq)`;
  const imageless = await sql<{ id: string }[]>`
    select b.id from builds b where status = 'succeeded' and not exists (
      select from images i where i.project_id = b.project_id and i.digest = b.image_digest)`;
  return [
    ...unequal.map(({ id, build, job }) => `the build ${id} is ${build}, its job ${job}`),
    ...gaps.map(
      ({ id, lines, last }) => `the log of ${id} has ${String(lines)} lines, and its last is ${String(last)}`,
    ),
    ...imageless.map(({ id }) => `the build ${id} succeeded without its image`),
  ];
}

interface Row {
  id: string;
  slot: number | null;
  address: string | null;
  status: string;
  settled: boolean;
  ports: string[];
}

async function wrongHost({ sql, config }: Compared): Promise<string[]> {
  const rows = await sql<Row[]>`
    select c.id, slot, ip_address address, c.status, wanted_rev = seen_rev settled,
      array(select protocol || ' ' || host_port || ' to ' || container_port from ports p
        where p.container_id = c.id and p.status = 'active') ports
    from containers c`;
  const moving = rows.filter(
    ({ settled, status }) => !settled || !["created", "running", "exited", "failed"].includes(status),
  );
  const running = rows.filter(({ status }) => status === "running");
  const expected = [
    ...rows.flatMap(({ slot }) => (slot === null ? [] : [`disk ${String(slot)}`, `log ${String(slot)}`])),
    ...running.flatMap(({ id, slot, address, ports }) => [
      ...["monitor", "mount of disk", "mount of rootfs", "directory", "runtime's state", "loop"].map(
        (what) => `${what} ${String(slot)}`,
      ),
      `link ${id}`,
      `member ${String(address)}`,
      ...ports.map((port) => `port ${port} of ${String(address)}`),
    ]),
  ];
  const found = leftovers({ config }).flatMap((line) => named(line, config));
  const ids = new Set(rows.map(({ id }) => id));
  const logs = `${config.dataDir}/worker/logs`;
  return [
    ...moving.map(({ id, status }) => `the container ${id} is ${status} and has not come to rest`),
    ...differences(expected, found),
    ...(existsSync(logs) ? readdirSync(logs) : [])
      .filter((id) => !ids.has(id))
      .map((id) => `the log of ${id} has no row`),
  ];
}

/** A leftover by what it is and whose; only of kinds that every container has exactly once. */
function named(line: string, { instance }: Compared["config"]): string[] {
  const forms: [RegExp, (...groups: string[]) => string][] = [
    [new RegExp(`^process \\d+ .* --name=${instance}-(\\d+) `), (slot) => `monitor ${slot}`],
    [/^mount .*\/slots\/(\d+)\/(disk|rootfs)$/, (slot, what) => `mount of ${what} ${slot}`],
    [/^loop .*\/disks\/(\d+)\.img$/, (slot) => `loop ${slot}`],
    [/^file .*\/containers\/(\w+)$/, (id) => `link ${id}`],
    [/^file .*\/slots\/(\d+)$/, (slot) => `directory ${slot}`],
    [/^file .*\/runtime\/\w+-(\d+)$/, (slot) => `runtime's state ${slot}`],
    [/^file .*\/disks\/(\d+)\.img$/, (slot) => `disk ${slot}`],
    [/^file .*\/slot-logs\/(\d+)$/, (slot) => `log ${slot}`],
    [/^element of member4: \{"concat":\[\d+,"([\d.]+)"\]\}$/, (address) => `member ${address}`],
    [
      /^element of port4: \[\{"concat":\["(\w+)",(\d+)\]\},\{"concat":\["([\d.]+)",(\d+)\]\}\]$/,
      (protocol, port, address, inside) => `port ${protocol} ${port} to ${inside} of ${address}`,
    ],
  ];
  for (const [form, name] of forms) {
    const match = form.exec(line);
    if (match !== null) return [name(...match.slice(1))];
  }
  // What is there once for each process, project or address family.
  return /^(process|cgroup|link|element) /.test(line) ? [] : [line];
}

function differences(expected: readonly string[], found: readonly string[]): string[] {
  const count = (list: readonly string[], what: string) => list.filter((each) => each === what).length;
  return [...new Set([...expected, ...found])].flatMap((what) => {
    const [wanted, there] = [count(expected, what), count(found, what)];
    return wanted === there ? [] : [`${what}: ${String(there)} on the host, ${String(wanted)} by the rows`];
  });
}
