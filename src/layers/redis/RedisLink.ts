/**
 * One ioredis client, kept connected: what both of a process's connections to
 * Redis have in common.
 *
 * - A connection that is lost is made again when the Schedule says so, and sooner
 *   while somebody waits for it: ioredis is told never to do it by itself.
 * - Its state is told to whoever listens, logged and kept as a metric.
 * - A connection that is idle is asked for a sign of life, so that one that died
 *   silently is noticed within the timeout of its socket.
 */
import type { Socket } from "node:net"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import * as Pull from "effect/Pull"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import { Cluster, type Redis } from "ioredis"
import * as Timers from "../../services/internal/Timers.ts"
import * as Metrics from "../../services/Metrics.ts"
import { Unavailable } from "../../services/Reason.ts"
import type { LinkState } from "./RedisConnection.ts"

export interface Link<C extends Redis | Cluster> {
  readonly client: C
  readonly isReady: () => boolean
  /** Connects, if nobody has yet; called by whoever begins to wait for the connection. */
  readonly connect: () => void
  /** If the connection is lost: tries now, whatever the Schedule says. */
  readonly tryNow: () => void
  readonly state: () => LinkState
  /** What went wrong since it was last connected. */
  readonly lastError: () => unknown
}

/** Keeps a client until the scope closes. */
export const make = <C extends Redis | Cluster>(options: {
  readonly role: "commands" | "subscriptions"
  readonly timers: Timers.Timers
  /** Within which an operation ends, in milliseconds. */
  readonly timeout: number
  readonly reconnect: Schedule.Schedule<unknown>
  /** A client that is not connected yet, and does not reconnect. */
  readonly client: C
  /** Called before every attempt but the first. */
  readonly onRetry?: () => void
  /** Whether somebody waits for the connection. */
  readonly isAwaited: () => boolean
  readonly onChange: (state: LinkState) => void
}): Effect.Effect<Link<C>, never, Scope.Scope> =>
  Effect.gen(function* () {
    const { client, role, timeout, timers } = options
    const context = yield* Effect.context<never>()
    const run = Effect.runForkWith(context)
    const attributes = { backend: "redis", role }
    const up = Metric.withAttributes(Metrics.connectionUp, attributes)
    const lost = Metric.withAttributes(Metrics.connectionsLost, attributes)

    let state: LinkState = "idle"
    let lastError: unknown
    let closing = false

    const become = (next: LinkState) => {
      if (next === state || state === "closed") return
      const isLost = state === "ready" && !closing
      if (isLost) lost.updateUnsafe(1, context)
      const log = closing
        ? undefined
        : next === "ready"
          ? Effect.logDebug("Connected to Redis")
          : next === "closed"
            ? Effect.logError("Connection to Redis given up: its reconnect schedule has ended", reasonOf(lastError))
            : isLost
              ? Effect.logWarning("Connection to Redis lost", reasonOf(lastError))
              : state === "connecting"
                ? Effect.logWarning("Redis cannot be reached; trying again", reasonOf(lastError))
                : undefined
      if (log !== undefined) run(Effect.annotateLogs(log, attributes))
      state = next
      up.updateUnsafe(next === "ready" ? 1 : 0, context)
      options.onChange(next)
    }

    // --- attempts ---

    let step: ReturnType<typeof makeStep> | undefined
    const makeStep = () => Effect.runSyncWith(context)(Schedule.toStep(options.reconnect))
    /** How long to wait, says the Schedule; `undefined` when it has ended. */
    const nextDelay = (): number | undefined => {
      step ??= makeStep()
      const next = Effect.runSyncExitWith(context)(
        Pull.catchDone(step(timers.now(), undefined), () => Effect.undefined)
      )
      if (next._tag === "Success") return next.value === undefined ? undefined : Duration.toMillis(next.value[1])
      run(Effect.logError("The reconnect schedule of a Redis connection failed; trying again in 1 second", next.cause))
      return 1_000
    }

    /** When the last attempt began, and when the Schedule wants the next. */
    let last = Number.NEGATIVE_INFINITY
    let scheduled = Number.NEGATIVE_INFINITY

    const attempt = () => {
      timers.cancel(timer)
      last = timers.now()
      if (state === "idle") become("connecting")
      else options.onRetry?.()
      client.connect().catch(() => undefined)
    }
    const timer = new Task(attempt)

    /** Whoever waits does so no longer than the timeout: the Schedule may be too slow for that. */
    const plan = () => {
      timers.start(timer, options.isAwaited() ? Math.min(scheduled, last + timeout / 10) : scheduled)
    }

    const onEnd = () => {
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
    }

    const note = (error: unknown) => {
      lastError = withoutArguments(error)
    }
    client.on("error", note)
    client.on("node error", note)
    client.on("ready", () => {
      lastError = step = undefined
      scheduled = Number.NEGATIVE_INFINITY
      timers.start(heartbeat, timers.now() + timeout / 2)
      become("ready")
    })
    client.on("end", onEnd)

    // The socket's timeout does the rest: it watches whoever owes an answer.
    const heartbeat = new Task(() => {
      if (client.status !== "ready") return
      for (const node of nodesOf(client)) if (node.status === "ready") node.ping().catch(() => undefined)
      timers.start(heartbeat, timers.now() + timeout / 2)
    })

    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        closing = true
        timers.cancel(timer)
        timers.cancel(heartbeat)
        become("closed")
        // What is written goes out, but nobody waits for the other side to say goodbye: it may be dead.
        const streams = nodesOf(client).map(({ stream }) => stream as Socket | undefined)
        client.disconnect()
        for (const stream of streams) {
          stream?.setTimeout(timeout, () => stream.destroy())
          stream?.destroySoon()
        }
      })
    )

    return {
      client,
      isReady: () => client.status === "ready" && (client instanceof Cluster || client.stream.writable),
      connect: () => {
        if (state === "idle") attempt()
        else if (timer.pending) plan()
      },
      tryNow: () => {
        if (timer.pending) attempt()
      },
      state: () => state,
      lastError: () => lastError
    }
  })

class Task extends Timers.Timer {
  override readonly run: () => void

  constructor(run: () => void) {
    super()
    this.run = run
  }
}

const nodesOf = (client: Redis | Cluster): ReadonlyArray<Redis> =>
  client instanceof Cluster ? client.nodes("all") : [client]

/** An error of ioredis without the commands it hangs on it: payloads and passwords are not for logs. */
export const withoutArguments = (error: unknown): unknown => {
  if (!(error instanceof Error)) return error
  if ("command" in error) delete error.command
  if (error instanceof AggregateError) for (const one of error.errors) withoutArguments(one)
  return error
}

export const unavailable = (detail: string, cause?: unknown): Unavailable =>
  new Unavailable({ backend: "redis", detail, ...(cause !== undefined && { cause: withoutArguments(cause) }) })

/** Why the last attempt to connect failed, in words. */
export const reasonOf = (error: unknown): string => {
  if (error instanceof AggregateError && error.errors.length > 0) return reasonOf(error.errors[0])
  if (!(error instanceof Error)) return "closed by the server"
  if ("lastNodeError" in error && error.lastNodeError instanceof Error) return reasonOf(error.lastNodeError)
  return error.message === "" ? error.name : error.message
}
