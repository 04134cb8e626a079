import type { Passage } from "./passage.ts";
import { dockerfileError, type Location, quoted } from "./source.ts";
import { didYouMean } from "./suggest.ts";
import { type Flag, takeFlags } from "./words.ts";

/** How often a flag may stand and whether it has a value. */
export type FlagKind = "text" | "boolean" | "list";

/** The flags of one instruction, each known by name; others are errors. */
export class Flags {
  readonly #values: ReadonlyMap<string, Flag[]>;

  private constructor(values: ReadonlyMap<string, Flag[]>) {
    this.#values = values;
  }

  /** Takes the flags off the front of an instruction's arguments. @throws BerthError for unknown and doubled ones. */
  static take(
    keyword: string,
    args: Passage,
    escape: string,
    known: Readonly<Record<string, FlagKind>>,
  ): { flags: Flags; rest: Passage } {
    const { flags, rest } = takeFlags(args, escape);
    const values = new Map<string, Flag[]>();
    for (const flag of flags) {
      const at = flag.passage.at();
      const kind = Object.hasOwn(known, flag.name) ? known[flag.name] : undefined;
      if (kind === undefined) {
        const names = Object.keys(known).map((name) => `--${name}`);
        const hint =
          didYouMean(`--${flag.name}`, names) || (names.length === 0 ? "." : `; it has ${names.join(", ")}.`);
        throw dockerfileError(at, `${keyword} has no flag ${quoted(`--${flag.name}`)}${hint}`);
      }
      const before = values.get(flag.name) ?? [];
      if (before.length > 0 && kind !== "list") throw dockerfileError(at, `the flag --${flag.name} stands twice.`);
      if (kind !== "boolean" && flag.value === null)
        throw dockerfileError(at, `--${flag.name} needs a value: --${flag.name}=….`);
      if (kind === "boolean" && !/^(?:true|false)$/.test(flag.value ?? "true")) {
        throw dockerfileError(at, `--${flag.name} must be true or false, not ${quoted(flag.value ?? "")}.`);
      }
      values.set(flag.name, [...before, flag]);
    }
    return { flags: new Flags(values), rest };
  }

  text(name: string): string | null {
    return this.#values.get(name)?.[0]?.value ?? null;
  }

  /** null: the flag is not there. */
  boolean(name: string): boolean | null {
    const flag = this.#values.get(name)?.[0];
    return flag === undefined ? null : flag.value !== "false";
  }

  list(name: string): { text: string; at: Location }[] {
    return (this.#values.get(name) ?? []).map((flag) => ({ text: flag.value ?? "", at: flag.passage.at() }));
  }

  /** Where the flag stands, for an error about its value. */
  at(name: string): Location | undefined {
    return this.#values.get(name)?.[0]?.passage.at();
  }
}
