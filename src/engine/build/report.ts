import type { StagePlan } from "../../build/step.ts";
import type { BuildStepView } from "../../core/build-request.ts";
import type { LogRow } from "../../db/build-runs.ts";

/** Writes lines and, when they changed, the steps. False: the build is no longer ours. */
export type SaveReport = (lines: readonly LogRow[], steps: readonly BuildStepView[] | null) => Promise<boolean>;

/** Lines gather this long, so that a chatty step costs one write for many; a reader sees them this late. */
const gatherMs = 40;
const maxGathered = 2000;
/** What a step may log, after which only its end is told. */
const maxStepBytes = 4 * 2 ** 20;
const maxLineLength = 16_384;

/** What a build tells while it runs: numbered log lines and the state of its steps, written in batches and in order. */
export class BuildReport {
  readonly #save: SaveReport;
  #steps: BuildStepView[] = [];
  #changed = false;
  #seq: number;
  #lines: LogRow[] = [];
  #timer: NodeJS.Timeout | null = null;
  #writing: Promise<void> = Promise.resolve();
  #failure: Error | null = null;
  readonly #stepBytes = new Map<number, number>();
  readonly #started = new Map<number, number>();

  constructor(save: SaveReport, nextSeq: number) {
    this.#save = save;
    this.#seq = nextSeq;
  }

  get steps(): readonly BuildStepView[] {
    return this.#steps;
  }

  plan(stages: readonly StagePlan[]): void {
    this.#steps = stages.flatMap(({ steps }) =>
      steps.map(({ index, stage, instruction, at }) => ({
        index,
        stage,
        instruction: instruction.slice(0, 1000),
        line: at.line,
        status: "pending" as const,
        cached: false,
        durationMs: null,
      })),
    );
    this.#touch();
  }

  begin(index: number, title: string): void {
    this.#started.set(index, performance.now());
    this.#set(index, { status: "running" });
    this.line(index, "info", `#${index} ${title}`);
  }

  end(index: number, end: { status: "succeeded" | "failed" | "cancelled"; cached?: boolean }): void {
    const started = this.#started.get(index);
    const durationMs = started === undefined ? 0 : Math.round(performance.now() - started);
    this.#set(index, { status: end.status, cached: end.cached ?? false, durationMs });
    const how =
      end.cached === true ? "CACHED" : { succeeded: "DONE", failed: "FAILED", cancelled: "CANCELED" }[end.status];
    this.line(index, "info", `#${index} ${how}${end.cached === true ? "" : ` ${(durationMs / 1000).toFixed(1)}s`}`);
  }

  /** Adds a line; `step` 0 is the build itself. Lines past a step's limit are left out, once said so. */
  line(step: number, stream: LogRow["stream"], text: string): void {
    const shown = text.slice(0, maxLineLength).replaceAll("\0", "\uFFFD");
    if (stream !== "info") {
      const before = this.#stepBytes.get(step) ?? 0;
      if (before > maxStepBytes) return;
      this.#stepBytes.set(step, before + shown.length + 1);
      if (before + shown.length + 1 > maxStepBytes) {
        return this.line(step, "info", `#${step} [the rest of the output is left out: ${maxStepBytes} bytes are kept]`);
      }
    }
    this.#lines.push({ seq: this.#seq++, step, stream, text: shown, at: new Date() });
    this.#touch();
  }

  /** Resolves when the writer has caught up enough to take more. */
  async ready(): Promise<void> {
    if (this.#lines.length >= maxGathered) await this.flush();
  }

  /** Writes all that there is. @throws what a write threw, now or before. */
  async flush(): Promise<void> {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    this.#writing = this.#writing.then(() => this.#write());
    await this.#writing;
    this.check();
  }

  /** @throws what a write threw before; nothing is written any more then */
  check(): void {
    if (this.#failure !== null) throw this.#failure;
  }

  #set(index: number, change: Partial<BuildStepView>): void {
    this.#steps = this.#steps.map((step) => (step.index === index ? { ...step, ...change } : step));
    this.#changed = true;
    this.#touch();
  }

  #touch(): void {
    this.#changed ||= this.#lines.length === 0;
    this.#timer ??= setTimeout(() => {
      this.#timer = null;
      this.#writing = this.#writing.then(() => this.#write());
    }, gatherMs);
  }

  async #write(): Promise<void> {
    if (this.#failure !== null || (this.#lines.length === 0 && !this.#changed)) return;
    const lines = this.#lines;
    const steps = this.#changed ? this.#steps : null;
    this.#lines = [];
    this.#changed = false;
    try {
      await this.#save(lines, steps);
    } catch (error) {
      // Lines are numbered without gaps, so nothing may follow what is lost; the attempt fails at the next flush.
      this.#failure = error instanceof Error ? error : new Error(String(error));
    }
  }
}
