import type { SkippedChecks } from "./check-policy.ts";
import { checkWriting } from "./check-writing.ts";
import type { ArgInstruction, FromInstruction, StageInstruction } from "./instruction.ts";
import { type Directives, lex } from "./lex.ts";
import { parseInstruction, parseStageInstruction } from "./parse-instruction.ts";
import { dockerfileError, type Source } from "./source.ts";
import type { Warning } from "./warning.ts";

const maxStages = 1000;

/** One `FROM` and what follows it. */
export interface Stage {
  number: number;
  /** Lower case; null: known by its number only. */
  name: string | null;
  from: FromInstruction;
  instructions: StageInstruction[];
}

/** A Dockerfile, understood but not yet expanded. */
export interface Dockerfile {
  directives: Directives;
  escape: string;
  source: Source;
  /** Checks that comments above instructions have skipped, by line. */
  skips: ReadonlyMap<number, SkippedChecks>;
  /** The ARGs in front of the first FROM. */
  globalArgs: ArgInstruction[];
  stages: Stage[];
  warnings: Warning[];
}

/** Parses a Dockerfile. @throws BerthError `invalid_dockerfile` with line, column, the line and what was expected. */
export function parseDockerfile(text: string): Dockerfile {
  const { directives, escape, instructions, source, skips } = lex(text);
  const globalArgs: ArgInstruction[] = [];
  const stages: Stage[] = [];
  for (const lexed of instructions) {
    const instruction = parseInstruction(lexed, escape);
    const stage = stages.at(-1);
    if (instruction.kind === "from") {
      if (stages.length === maxStages)
        throw dockerfileError(lexed.at, `a Dockerfile may have up to ${maxStages} stages.`);
      stages.push({ number: stages.length, name: instruction.name, from: instruction, instructions: [] });
    } else if (stage !== undefined) {
      stage.instructions.push(instruction);
    } else if (instruction.kind === "arg") {
      globalArgs.push(instruction);
    } else {
      throw dockerfileError(lexed.at, `${lexed.keyword} stands before the first FROM; only ARG may.`);
    }
  }
  if (stages.length === 0) {
    throw dockerfileError({ source, line: Math.max(1, source.lines.length), column: 1 }, "the Dockerfile has no FROM.");
  }
  return { directives, escape, source, skips, globalArgs, stages, warnings: checkWriting(instructions, stages) };
}

/** The instruction of an ONBUILD trigger that an image carries. */
export function parseTrigger(trigger: string, reference: string): StageInstruction {
  const { instructions, escape, source } = lex(trigger, `ONBUILD of ${reference}`);
  const [only, ...more] = instructions;
  if (only === undefined || more.length > 0) {
    throw dockerfileError({ source, line: 1, column: 1 }, "a trigger must be one instruction.");
  }
  return parseStageInstruction(only, escape);
}
