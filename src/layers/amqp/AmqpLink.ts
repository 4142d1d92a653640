/**
 * One connection to RabbitMQ, kept: what both of a process's connections have in
 * common.
 *
 * - A connection that is lost is made again when the Schedule says so, and sooner
 *   while somebody waits for it. What was on the old one never reaches the new one:
 *   each is a {@link Live} of its own.
 * - Its state is told to whoever listens, logged and kept as a metric.
 * - Heartbeats notice a connection that died silently.
 */
import type { Socket } from "node:net"
import { type ChannelModel, connect } from "amqplib"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import * as Pull from "effect/Pull"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Timers from "../../services/internal/Timers.ts"
import * as Metrics from "../../services/Metrics.ts"
import { Unavailable } from "../../services/Reason.ts"
import type { LinkState } from "./AmqpConnection.ts"
import type { Settings } from "./AmqpOptions.ts"

/** A connection that was made: it is up once, until it is over. */
export interface Live {
  readonly model: ChannelModel
  /** Why RabbitMQ takes no messages at the moment, if so. */
  blocked: string | undefined
  over: boolean
}

export interface Link {
  /** While it is up. */
  readonly live: () => Live | undefined
  /** Connects, if nobody has yet; called by whoever begins to wait for the connection. */
  readonly connect: () => void
  /** If the connection is lost: tries now, whatever the Schedule says. */
  readonly tryNow: () => void
  readonly state: () => LinkState
  /** What went wrong since it was last connected. */
  readonly lastError: () => unknown
}

/** Keeps a connection until the scope closes. */
export const make = (options: {
  readonly role: "publishing" | "consuming"
  readonly timers: Timers.Timers
  readonly settings: Settings
  /** Whether somebody waits for the connection. */
  readonly isAwaited: () => boolean
  readonly onUp: (live: Live) => void
  readonly onDown: () => void
  /** Whenever RabbitMQ begins or ends to take messages. */
  readonly onBlocked: (live: Live) => void
  readonly onChange: (state: LinkState) => void
}): Effect.Effect<Link, never, Scope.Scope> =>
  Effect.gen(function* () {
    const { role, settings, timers } = options
    const context = yield* Effect.context<never>()
    const run = Effect.runForkWith(context)
    const attributes = { backend: "rabbitmq", role }
    const up = Metric.withAttributes(Metrics.connectionUp, attributes)
    const lost = Metric.withAttributes(Metrics.connectionsLost, attributes)

    let state: LinkState = "idle"
    let live: Live | undefined
    let lastError: unknown
    let closing = false

    const log = (entry: Effect.Effect<void>) => run(Effect.annotateLogs(entry, attributes))

    const become = (next: LinkState) => {
      if (next === state || state === "closed") return
      const isLost = state === "ready" && !closing
      if (isLost) lost.updateUnsafe(1, context)
      if (!closing) {
        if (next === "ready") log(Effect.logDebug("Connected to RabbitMQ"))
        else if (next === "closed") {
          log(Effect.logError("Connection to RabbitMQ given up: its reconnect schedule has ended", reasonOf(lastError)))
        } else if (isLost) log(Effect.logWarning("Connection to RabbitMQ lost", reasonOf(lastError)))
        else if (state === "connecting") {
          log(Effect.logWarning("RabbitMQ cannot be reached; trying again", reasonOf(lastError)))
        }
      }
      state = next
      up.updateUnsafe(next === "ready" ? 1 : 0, context)
      options.onChange(next)
    }

    // --- attempts ---

    const makeStep = () => Effect.runSyncWith(context)(Schedule.toStep(settings.reconnect))
    let step: ReturnType<typeof makeStep> | undefined
    /** How long to wait, says the Schedule; `undefined` when it has ended. */
    const nextDelay = (): number | undefined => {
      step ??= makeStep()
      const next = Effect.runSyncExitWith(context)(
        Pull.catchDone(step(timers.now(), undefined), () => Effect.undefined)
      )
      if (next._tag === "Success") return next.value === undefined ? undefined : Duration.toMillis(next.value[1])
      log(
        Effect.logError("The reconnect schedule of a RabbitMQ connection failed; trying again in 1 second", next.cause)
      )
      return 1_000
    }

    /** When the last attempt began, and when the Schedule wants the next. */
    let last = Number.NEGATIVE_INFINITY
    let scheduled = Number.NEGATIVE_INFINITY
    let attempting = false
    let attempts = 0

    const attempt = () => {
      timers.cancel(timer)
      if (attempting || live !== undefined || closing) return
      attempting = true
      last = timers.now()
      if (state === "idle") become("connecting")
      // amqplib may never tell what became of a connection that is cut off while it is made.
      const late = timers.at(last + 3 * settings.timeout, () => end(new Error("no answer while connecting")))
      let over = false
      const end = (outcome: ChannelModel | Error) => {
        if (over) {
          if (!(outcome instanceof Error)) closeNow(outcome)
          return
        }
        over = true
        timers.cancel(late)
        attempting = false
        if (!(outcome instanceof Error)) {
          if (closing) closeNow(outcome)
          else onOpen(outcome)
        } else {
          lastError = outcome
          onEnd()
        }
      }
      open(settings, role, attempts++).then(end, (error) =>
        end(error instanceof Error ? error : new Error(String(error)))
      )
    }
    const timer = new Task(attempt)

    /** Whoever waits does so no longer than the timeout: the Schedule may be too slow for that. */
    const plan = () => {
      timers.start(timer, options.isAwaited() ? Math.min(scheduled, last + settings.timeout / 10) : scheduled)
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

    const onOpen = (model: ChannelModel) => {
      const opened: Live = { model, blocked: undefined, over: false }
      live = opened
      joinWrites(model)
      lastError = step = undefined
      scheduled = Number.NEGATIVE_INFINITY
      model.on("error", (error) => {
        lastError = error
      })
      model.on("close", (error) => {
        lastError ??= error
        opened.over = true
        // After a heartbeat that failed the socket would stay.
        socketOf(model).destroy()
        live = undefined
        options.onDown()
        onEnd()
      })
      model.on("blocked", (reason) => {
        opened.blocked = reason === "" ? "no reason given" : reason
        log(Effect.logWarning("RabbitMQ takes no messages", reason))
        options.onBlocked(opened)
      })
      model.on("unblocked", () => {
        opened.blocked = undefined
        log(Effect.logInfo("RabbitMQ takes messages again"))
        options.onBlocked(opened)
      })
      become("ready")
      options.onUp(opened)
    }

    yield* Effect.addFinalizer(() =>
      Effect.callback<void>((resume) => {
        closing = true
        timers.cancel(timer)
        become("closed")
        if (live === undefined) return resume(Effect.void)
        const { model } = live
        const socket = socketOf(model)
        socket.once("close", () => resume(Effect.void))
        // Nobody waits long for the other side to say goodbye: it may be dead.
        socket.setTimeout(Math.min(settings.timeout, 500), () => socket.destroy())
        // What amqplib has queued goes out first, in later turns of the loop.
        setImmediate(() => setImmediate(() => closeNow(model)))
      })
    )

    return {
      live: () => live,
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

export class Task extends Timers.Timer {
  override readonly run: () => void

  constructor(run: () => void) {
    super()
    this.run = run
  }
}

const open = (settings: Settings, role: string, attempt: number): Promise<ChannelModel> => {
  const { heartbeat, name, nodes, password, timeout, tls, username, vhost } = settings
  const { host, port } = nodes[attempt % nodes.length]!
  return connect(
    {
      protocol: tls === undefined ? "amqp" : "amqps",
      hostname: host,
      port,
      username,
      password,
      // amqplib decodes it.
      vhost: encodeURIComponent(vhost),
      heartbeat
    },
    {
      ...tls,
      timeout,
      // Without it a request of several frames waits for the acknowledgement of the first, 40 ms.
      noDelay: true,
      clientProperties: { connection_name: `${name} ${role}` }
    }
  )
}

/** What amqplib has and does not tell the types of. */
interface Internals {
  readonly stream: Socket
  readonly muxer?: { _readIncoming?: () => void }
}

const internals = (model: ChannelModel): Internals => model.connection as unknown as Internals
const socketOf = (model: ChannelModel): Socket => internals(model).stream

/** One write for what is sent in one turn of the event loop, where amqplib has one for each message: a third faster. */
const joinWrites = (model: ChannelModel): void => {
  const { muxer, stream } = internals(model)
  const pass = muxer?._readIncoming
  if (muxer === undefined || pass === undefined) return
  muxer._readIncoming = () => {
    stream.cork()
    try {
      pass.call(muxer)
    } finally {
      stream.uncork()
    }
  }
}

const closeNow = (model: ChannelModel) => {
  model.on("error", () => undefined)
  model.on("close", () => socketOf(model).destroy())
  model.close().catch(() => undefined)
}

export const unavailable = (detail: string, cause?: unknown): Unavailable =>
  new Unavailable({ backend: "rabbitmq", detail, ...(cause !== undefined && { cause }) })

/** Why something failed, in words; with those for what amqplib does not say. */
export const reasonOf = (error: unknown): string => {
  if (error instanceof AggregateError && error.errors.length > 0) return reasonOf(error.errors[0])
  if (!(error instanceof Error)) return "closed by the server"
  if (error.message.startsWith("Expected ConnectionOpenOk; got <ConnectionClose")) {
    return "the vhost is not there, or not open to this user"
  }
  return error.message === "" ? error.name : error.message
}
