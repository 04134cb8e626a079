/** The p-quantile (0–1) of the values, by the nearest rank. */
export function quantile(values: readonly number[], p: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.ceil(p * sorted.length) - 1)] ?? Number.NaN;
}

/** One line of the result: what was done, by us and by the peer, and the goal in the unit of the figures. */
export interface Row {
  work: string;
  unit: string;
  ours: number;
  peer: number | null;
  /** Whether more is better: then the ratio is ours to the peer's, else the peer's to ours. */
  more: boolean;
  goal: string;
}

/** A line of figures that were measured of both; for a rate (`/s`) more is better. */
export function row<Figures>(
  work: string,
  unit: "ms" | "kB" | "/s",
  ours: Figures,
  peer: Figures | null,
  of: (figures: Figures) => number,
  goal: string,
): Row {
  return { work, unit, ours: of(ours), peer: peer === null ? null : of(peer), more: unit === "/s", goal };
}

const show = (value: number) => (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2));

/** The rows as a table in plain text. */
export function formatTable(rows: readonly Row[], ours: string, peer: string): string {
  const cells = rows.map((row) => {
    const ratio = row.peer === null ? null : row.more ? row.ours / row.peer : row.peer / row.ours;
    return [
      row.work,
      `${show(row.ours)} ${row.unit}`,
      row.peer === null ? "–" : `${show(row.peer)} ${row.unit}`,
      ratio === null ? "–" : `${show(ratio)} ×`,
      row.goal,
    ];
  });
  const table = [["work", ours, peer, "ratio", "goal"], ...cells];
  const widths = [0, 1, 2, 3, 4].map((column) => Math.max(...table.map((line) => (line[column] ?? "").length)));
  return table
    .map((line) =>
      line
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}
