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
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type * as Timers from "../../services/internal/Timers.ts"
import { Unavailable } from "../../services/Reason.ts"
import * as Reconnect from "../internal/Reconnect.ts"
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
  readonly state: () => Reconnect.LinkState
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
  readonly onChange: (state: Reconnect.LinkState) => void
}): Effect.Effect<Link, never, Scope.Scope> =>
  Effect.gen(function* () {
    const { role, settings, timers } = options
    const context = yield* Effect.context<never>()
    const run = Effect.runForkWith(context)
    const attributes = { backend: "rabbitmq", role }
    const log = (entry: Effect.Effect<void>) => run(Effect.annotateLogs(entry, attributes))

    let live: Live | undefined
    let closing = false
    let attempting = false
    let attempts = 0

    const attempt = () => {
      if (attempting || live !== undefined || closing) return
      attempting = true
      // amqplib may never tell what became of a connection that is cut off while it is made.
      const late = timers.at(timers.now() + 3 * settings.timeout, () => end(new Error("no answer while connecting")))
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
          reconnect.note(outcome)
          reconnect.onDown()
        }
      }
      open(settings, role, attempts++).then(end, (error) =>
        end(error instanceof Error ? error : new Error(String(error)))
      )
    }
    const reconnect = yield* Reconnect.make({
      ...options,
      server: "RabbitMQ",
      attributes,
      timeout: settings.timeout,
      reconnect: settings.reconnect,
      attempt
    })

    const onOpen = (model: ChannelModel) => {
      const opened: Live = { model, blocked: undefined, over: false }
      live = opened
      joinWrites(model)
      model.on("error", reconnect.note)
      model.on("close", (error) => {
        reconnect.note(reconnect.lastError() ?? error)
        opened.over = true
        // After a heartbeat that failed the socket would stay.
        socketOf(model).destroy()
        live = undefined
        options.onDown()
        reconnect.onDown()
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
      reconnect.onUp()
      options.onUp(opened)
    }

    yield* Effect.addFinalizer(() =>
      Effect.callback<void>((resume) => {
        closing = true
        reconnect.close()
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
      connect: reconnect.connect,
      tryNow: reconnect.tryNow,
      state: reconnect.state,
      lastError: reconnect.lastError
    }
  })

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
