import { type Logger, pino } from "pino";

export type Log = Logger;

/** The only logger constructor. One JSON record a line on stderr; the fields named here never show their value. */
export function createLog(role: string, level: string): Log {
  return pino(
    {
      level,
      base: { role },
      timestamp: pino.stdTimeFunctions.isoTime,
      serializers: { err: shownInLog },
      redact: {
        paths: ["token", "authorization", "*.token", "*.authorization", "*.password", "auth", "*.auth"],
        censor: "[redacted]",
      },
    },
    pino.destination({ dest: 2, sync: true }),
  );
}

/** An error's facts for the log. */
export interface LoggedError {
  type: string;
  message: string;
  code?: string | number;
  constraint?: string;
  stack?: string;
  cause?: LoggedError;
}

/**
 * An error as the log shows it: these fields and no others, since libraries hang on errors what was being worked on. Of a
 * failed query that is its parameters and, in the database's `detail`, the row: environments, sealed credentials. What
 * wraps such an error repeats them in its message, so that only its cause is shown.
 */
export function shownInLog(thrown: unknown): LoggedError {
  if (!(thrown instanceof Error)) return { type: typeof thrown, message: String(thrown) };
  if ("params" in thrown && thrown.cause !== undefined) return shownInLog(thrown.cause);
  const code = "code" in thrown ? thrown.code : undefined;
  const constraint = "constraint_name" in thrown ? thrown.constraint_name : undefined;
  return {
    type: thrown.name,
    message: thrown.message,
    ...(typeof code === "string" || typeof code === "number" ? { code } : {}),
    ...(typeof constraint === "string" ? { constraint } : {}),
    ...(thrown.stack === undefined ? {} : { stack: thrown.stack }),
    ...(thrown.cause === undefined ? {} : { cause: shownInLog(thrown.cause) }),
  };
}
