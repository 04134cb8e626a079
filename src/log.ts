import { type Logger, pino } from "pino";

export type Log = Logger;

/** The only logger constructor. One JSON record a line on stderr; the fields named here never show their value. */
export function createLog(role: string, level: string): Log {
  return pino(
    {
      level,
      base: { role },
      timestamp: pino.stdTimeFunctions.isoTime,
      redact: {
        paths: ["token", "authorization", "*.token", "*.authorization", "*.password", "auth", "*.auth"],
        censor: "[redacted]",
      },
    },
    pino.destination({ dest: 2, sync: true }),
  );
}
