/** Upper bounds of the histogram's buckets, in seconds. */
const buckets = [0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30];

interface Series {
  counts: number[];
  count: number;
  sum: number;
}

/** Requests as they are counted: by method, route (not path: those have ids) and status, with their duration. */
export class RequestMetrics {
  readonly #series = new Map<string, Series>();

  observe(method: string, route: string, status: number, seconds: number): void {
    const key = `method="${method}",route="${route}",status="${String(status)}"`;
    let series = this.#series.get(key);
    if (series === undefined) {
      series = { counts: buckets.map(() => 0), count: 0, sum: 0 };
      this.#series.set(key, series);
    }
    series.count++;
    series.sum += seconds;
    buckets.forEach((bound, index) => {
      if (seconds <= bound) series.counts[index] = (series.counts[index] ?? 0) + 1;
    });
  }

  /** The Prometheus text format, version 0.0.4. */
  text(gauges: Record<string, number>): string {
    const lines = ["# TYPE berth_http_request_seconds histogram"];
    for (const [labels, { counts, count, sum }] of this.#series) {
      counts.forEach((n, index) => {
        lines.push(`berth_http_request_seconds_bucket{${labels},le="${String(buckets[index])}"} ${String(n)}`);
      });
      lines.push(`berth_http_request_seconds_bucket{${labels},le="+Inf"} ${String(count)}`);
      lines.push(`berth_http_request_seconds_sum{${labels}} ${String(sum)}`);
      lines.push(`berth_http_request_seconds_count{${labels}} ${String(count)}`);
    }
    for (const [name, value] of Object.entries(gauges)) lines.push(`# TYPE ${name} gauge`, `${name} ${String(value)}`);
    return `${lines.join("\n")}\n`;
  }
}
