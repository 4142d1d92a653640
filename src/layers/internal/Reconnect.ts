/**
 * When a connection to a server is made again, and what state it is in: what the
 * connections of all backends have in common.
 *
 * - One that is lost is made again when the Schedule says so, and sooner while
 *   somebody waits for it. Attempts before their time do not count for the Schedule,
 *   which begins anew after each success.
 * - Its state is told to whoever listens, logged, and kept as a metric.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import * as Pull from "effect/Pull"
import * as Schedule from "effect/Schedule"
import * as Timers from "../../services/internal/Timers.ts"
import * as Metrics from "../../services/Metrics.ts"

/**
 * Where a connection stands. `idle`: not asked for yet. `closed`: given up, for good.
 *
 * @since 0.2.0
 */
export type LinkState = "idle" | "connecting" | "ready" | "reconnecting" | "closed"

export interface Reconnect {
  readonly state: () => LinkState
  /** What went wrong since it was last connected. */
  readonly lastError: () => unknown
  readonly note: (error: unknown) => void
  /** Connects, if nobody has yet; called by whoever begins to wait for the connection. */
  readonly connect: () => void
  /** If the connection is lost: tries now, whatever the Schedule says. */
  readonly tryNow: () => void
  /** It is made. */
  readonly onUp: () => void
  /** An attempt failed, or what was made is lost. */
  readonly onDown: () => void
  /** Ends all attempts: it is not to be made again. */
  readonly close: () => void
}

export const make = (options: {
  /** How it is called in logs. */
  readonly server: string
  /** Of logs and metrics. */
  readonly attributes: { readonly backend: string; readonly role: string }
  readonly timers: Timers.Timers
  /** Within which an operation ends, in milliseconds: whoever waits tries ten times. */
  readonly timeout: number
  readonly reconnect: Schedule.Schedule<unknown>
  /** Whether somebody waits for the connection. */
  readonly isAwaited: () => boolean
  /** Tries to connect; `onUp` or `onDown` follows. */
  readonly attempt: () => void
  readonly onChange: (state: LinkState) => void
}): Effect.Effect<Reconnect> =>
  Effect.map(Effect.context<never>(), (context) => {
    const { attributes, server, timeout, timers } = options
    const run = Effect.runForkWith(context)
    const log = (entry: Effect.Effect<void>) => run(Effect.annotateLogs(entry, attributes))
    const up = Metric.withAttributes(Metrics.connectionUp, attributes)
    const lost = Metric.withAttributes(Metrics.connectionsLost, attributes)
    lost.updateUnsafe(0, context)

    let state: LinkState = "idle"
    let lastError: unknown
    let closing = false

    const become = (next: LinkState) => {
      if (next === state || state === "closed") return
      const isLost = state === "ready" && !closing
      if (isLost) lost.updateUnsafe(1, context)
      if (!closing) {
        if (next === "ready") log(Effect.logDebug(`Connected to ${server}`))
        else if (next === "closed") {
          log(
            Effect.logError(`Connection to ${server} given up: its reconnect schedule has ended`, reasonOf(lastError))
          )
        } else if (isLost) log(Effect.logWarning(`Connection to ${server} lost`, reasonOf(lastError)))
        else if (state === "connecting") {
          log(Effect.logWarning(`${server} cannot be reached; trying again`, reasonOf(lastError)))
        }
      }
      state = next
      up.updateUnsafe(next === "ready" ? 1 : 0, context)
      options.onChange(next)
    }

    const makeStep = () => Effect.runSyncWith(context)(Schedule.toStep(options.reconnect))
    let step: ReturnType<typeof makeStep> | undefined
    /** How long to wait, says the Schedule; `undefined` when it has ended. */
    const nextDelay = (): number | undefined => {
      step ??= makeStep()
      const next = Effect.runSyncExitWith(context)(
        Pull.catchDone(step(timers.now(), undefined), () => Effect.undefined)
      )
      if (next._tag === "Success") return next.value === undefined ? undefined : Duration.toMillis(next.value[1])
      log(
        Effect.logError(`The reconnect schedule of a ${server} connection failed; trying again in 1 second`, next.cause)
      )
      return 1_000
    }

    /** When the last attempt began, and when the Schedule wants the next. */
    let last = Number.NEGATIVE_INFINITY
    let scheduled = Number.NEGATIVE_INFINITY

    const attempt = () => {
      timers.cancel(timer)
      last = timers.now()
      if (state === "idle") become("connecting")
      options.attempt()
    }
    const timer = new Timers.Call(attempt)

    /** Whoever waits does so no longer than the timeout: the Schedule may be too slow for that. */
    const plan = () => {
      timers.start(timer, options.isAwaited() ? Math.min(scheduled, last + timeout / 10) : scheduled)
    }

    return {
      state: () => state,
      lastError: () => lastError,
      note: (error) => {
        lastError = error
      },
      connect: () => {
        if (state === "idle") attempt()
        else if (timer.pending) plan()
      },
      tryNow: () => {
        if (timer.pending) attempt()
      },
      onUp: () => {
        lastError = step = undefined
        scheduled = Number.NEGATIVE_INFINITY
        become("ready")
      },
      onDown: () => {
        if (closing) return
        become("reconnecting")
        const now = timers.now()
        // An attempt before its time does not count for the Schedule.
        if (scheduled <= now) {
          const delay = nextDelay()
          if (delay === undefined) return become("closed")
          scheduled = now + delay
        }
        plan()
      },
      close: () => {
        closing = true
        timers.cancel(timer)
        become("closed")
      }
    }
  })

/** Why something failed, in words; with those for what the clients do not say. */
export const reasonOf = (error: unknown): string => {
  if (error instanceof AggregateError && error.errors.length > 0) return reasonOf(error.errors[0])
  if (!(error instanceof Error)) return "closed by the server"
  // ioredis on a Redis Cluster.
  if ("lastNodeError" in error && error.lastNodeError instanceof Error) return reasonOf(error.lastNodeError)
  if (error.message.startsWith("Expected ConnectionOpenOk; got <ConnectionClose")) {
    return "the vhost is not there, or not open to this user"
  }
  return error.message === "" ? error.name : error.message
}
