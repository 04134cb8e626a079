/** Something in a Dockerfile that works but is probably not meant. `line` counts from 1. */
export interface Warning {
  code:
    | "duplicate_stage"
    | "empty_continuation"
    | "json_args_recommended"
    | "legacy_key_value"
    | "maintainer_deprecated"
    | "relative_workdir"
    | "secret_in_variable"
    | "stage_name_casing"
    | "undefined_variable"
    | "unused_build_arg";
  message: string;
  line: number;
}

const secretWords = new Set([
  "apikey",
  "auth",
  "credential",
  "credentials",
  "key",
  "password",
  "pword",
  "passwd",
  "secret",
  "token",
]);
const publicWords = new Set(["public", "file", "id", "url"]);

/** Whether a variable's name says that it holds a secret, which an image would show to everybody. */
export function looksSecret(name: string): boolean {
  const words = name.toLowerCase().split("_");
  return words.some((word) => secretWords.has(word)) && !words.some((word) => publicWords.has(word));
}
