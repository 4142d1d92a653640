/** The last warnings and errors that an instance has logged. */
import * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Cause from "effect/Cause"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as References from "effect/References"

export interface Line {
  /** Counts up. */
  readonly number: number
  readonly at: DateTime.Utc
  readonly level: string
  readonly text: string
  /** The annotations. */
  readonly about: string
}

const kept = 100
const longest = 1_000
/** Where in the code it was is for the log itself. */
const stackFrame = /\n +at .*/g

export class RecentLog extends Context.Service<RecentLog, { readonly lines: Effect.Effect<ReadonlyArray<Line>> }>()(
  "cohort/host/page/RecentLog"
) {}

const textOf = (part: unknown): string =>
  typeof part === "string"
    ? part
    : part instanceof Error
      ? part.message
      : Cause.isCause(part)
        ? Cause.pretty(part)
        : JSON.stringify(part)

export const layer: Layer.Layer<RecentLog> = Layer.unwrap(
  Effect.sync(() => {
    const lines: Array<Line> = []
    let number = 0
    const logger = Logger.make<unknown, void>(({ cause, date, fiber, logLevel, message }) => {
      if (!LogLevel.isGreaterThanOrEqualTo(logLevel, "Warn")) return
      const parts = (Array.isArray(message) ? message : [message]).map(textOf)
      if (cause.reasons.length > 0) parts.push(String(Cause.squash(cause)))
      const text = parts.join(": ").replace(stackFrame, "")
      const about = Object.entries(fiber.getRef(References.CurrentLogAnnotations))
      lines.push({
        number: ++number,
        at: DateTime.makeUnsafe(date),
        level: logLevel,
        text: text.slice(0, longest),
        about: about
          .map(([key, value]) => `${key} ${textOf(value)}`)
          .join(", ")
          .slice(0, longest)
      })
      if (lines.length > kept) lines.shift()
    })
    return Layer.merge(
      Layer.succeed(RecentLog, RecentLog.of({ lines: Effect.sync(() => [...lines]) })),
      Logger.layer([logger], { mergeWithExisting: true })
    )
  })
)
