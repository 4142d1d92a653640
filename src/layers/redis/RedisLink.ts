/**
 * One ioredis client, kept connected: what both of a process's connections to
 * Redis have in common.
 *
 * A client reconnects when its Schedule says so. Its state is told to whoever
 * listens, logged and kept as a metric. A connection that is idle is asked for a
 * sign of life, so that one that died silently is noticed within the timeout of
 * its socket.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import * as Pull from "effect/Pull"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type { Cluster, Redis } from "ioredis"
import type { Timers } from "../../services/internal/Timers.ts"
import * as Metrics from "../../services/Metrics.ts"
import { Unavailable } from "../../services/Reason.ts"
import type { LinkState } from "./RedisConnection.ts"

export interface Link<C extends Redis | Cluster> {
  readonly client: C
  readonly isReady: () => boolean
  /** Connects, if nobody has yet. */
  readonly connect: () => void
  readonly state: () => LinkState
  /** What went wrong last; why the connection is not there. */
  readonly lastError: () => unknown
}

/** Keeps a client until the scope closes. */
export const make = <C extends Redis | Cluster>(options: {
  readonly role: "commands" | "subscriptions"
  readonly timers: Timers
  /** How long an idle connection is left alone, in milliseconds. */
  readonly heartbeat: number
  readonly reconnect: Schedule.Schedule<unknown>
  readonly create: (retryStrategy: (attempt: number) => number | null) => C
  readonly onChange: (state: LinkState) => void
}): Effect.Effect<Link<C>, never, Scope.Scope> =>
  Effect.gen(function* () {
    const { role, timers } = options
    const context = yield* Effect.context<never>()
    const run = Effect.runForkWith(context)
    const attributes = { backend: "redis", role }
    const up = Metric.withAttributes(Metrics.connectionUp, attributes)
    const lost = Metric.withAttributes(Metrics.connectionsLost, attributes)

    let state: LinkState = "idle"
    let lastError: unknown
    let closing = false
    let stepper: ReturnType<typeof makeStep> | undefined

    const makeStep = () => Effect.runSyncWith(context)(Schedule.toStep(options.reconnect))
    const retryStrategy = (attempt: number): number | null => {
      if (attempt <= 1 || stepper === undefined) stepper = makeStep()
      const next = Effect.runSyncExitWith(context)(
        Pull.catchDone(stepper(timers.now(), undefined), () => Effect.undefined)
      )
      if (next._tag === "Success") return next.value === undefined ? null : Duration.toMillis(next.value[1])
      run(Effect.logError("The reconnect schedule of a Redis connection failed; trying again in 1 second", next.cause))
      return 1_000
    }

    const become = (next: LinkState) => {
      if (next === state || state === "closed") return
      const isLost = state === "ready" && !closing
      if (isLost) lost.updateUnsafe(1, context)
      const log =
        next === "ready"
          ? Effect.logDebug("Connected to Redis")
          : isLost
            ? Effect.logWarning("Connection to Redis lost", reasonOf(lastError))
            : undefined
      if (log !== undefined) run(Effect.annotateLogs(log, attributes))
      state = next
      up.updateUnsafe(next === "ready" ? 1 : 0, context)
      options.onChange(next)
    }

    const client = options.create(retryStrategy)
    client.on("error", (error) => {
      lastError = withoutArguments(error)
    })
    client.on("connecting", () => become(state === "idle" ? "connecting" : "reconnecting"))
    client.on("ready", () => {
      become("ready")
      beat()
    })
    client.on("close", () => become("reconnecting"))
    client.on("end", () => become("closed"))

    const isReady = () => client.status === "ready"

    // The socket's timeout does the rest: it watches whoever owes an answer.
    const beat = () => {
      timers.at(timers.now() + options.heartbeat, () => {
        if (!isReady()) return
        client.ping().catch(() => undefined)
        beat()
      })
    }

    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        closing = true
        become("closed")
        client.disconnect()
      })
    )

    return {
      client,
      isReady,
      connect: () => {
        if (client.status === "wait") client.connect().catch(() => undefined)
      },
      state: () => state,
      lastError: () => lastError
    }
  })

/** An error of ioredis without the command it hangs on it: payloads and passwords are not for logs. */
export const withoutArguments = (error: unknown): unknown => {
  if (error instanceof Error && "command" in error) delete error.command
  return error
}

export const unavailable = (detail: string, cause?: unknown): Unavailable =>
  new Unavailable({ backend: "redis", detail, ...(cause !== undefined && { cause: withoutArguments(cause) }) })

/** Why the last attempt to connect failed, in words. */
export const reasonOf = (error: unknown): string =>
  error instanceof AggregateError && error.errors.length > 0
    ? reasonOf(error.errors[0])
    : error instanceof Error && error.message !== ""
      ? error.message
      : "closed by the server"
