/**
 * One ioredis client, kept connected: what both of a process's connections to
 * Redis have in common.
 *
 * - A connection that is lost is made again when the Schedule says so, and sooner
 *   while somebody waits for it: ioredis is told never to do it by itself.
 * - Its state is told to whoever listens, logged and kept as a metric.
 * - A connection that is idle is asked for a sign of life, so that one that died
 *   silently is noticed within the timeout of its socket.
 * - What a lost connection still has on its way may be late: on one that the network
 *   has held up, it could undo what the next one has done since. So the next one first
 *   ends it on the server (`CLIENT KILL`), if the user may.
 */
import type { Socket } from "node:net"
import * as Effect from "effect/Effect"
import type * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import { Cluster, type Redis } from "ioredis"
import * as Timers from "../../services/internal/Timers.ts"
import { Unavailable } from "../../services/Reason.ts"
import * as Reconnect from "../internal/Reconnect.ts"

export interface Link<C extends Redis | Cluster> {
  readonly client: C
  readonly isReady: () => boolean
  /** Connects, if nobody has yet; called by whoever begins to wait for the connection. */
  readonly connect: () => void
  /** If the connection is lost: tries now, whatever the Schedule says. */
  readonly tryNow: () => void
  readonly state: () => Reconnect.LinkState
  /** What went wrong since it was last connected. */
  readonly lastError: () => unknown
}

/** Keeps a client until the scope closes. */
export const make = <C extends Redis | Cluster>(options: {
  readonly role: "commands" | "subscriptions"
  /** What the connection is called, if anything. */
  readonly name: string | undefined
  readonly timers: Timers.Timers
  /** Within which an operation ends, in milliseconds. */
  readonly timeout: number
  readonly reconnect: Schedule.Schedule<unknown>
  /** A client that is not connected yet, and does not reconnect. */
  readonly client: C
  /** Called before every attempt. */
  readonly onAttempt: () => void
  /** Writes what commands there are already, where ioredis counts on answers in that order. */
  readonly flush?: () => void
  /** Whether somebody waits for the connection. */
  readonly isAwaited: () => boolean
  readonly onChange: (state: Reconnect.LinkState) => void
}): Effect.Effect<Link<C>, never, Scope.Scope> =>
  Effect.gen(function* () {
    const { client, name, role, timeout, timers } = options
    const reconnect = yield* Reconnect.make({
      ...options,
      server: "Redis",
      attributes: { backend: "redis", role, ...(name !== undefined && { name }) },
      attempt: () => {
        options.onAttempt()
        client.connect().catch(() => undefined)
      }
    })

    const note = (error: unknown) => {
      reconnect.note(withoutArguments(error))
    }
    let isRefused = false
    client.on("error", (error) => {
      if (isRefused) return
      // ioredis would go on, with database 0. For want of a password it does not, and says then what is wrong with that.
      const { command, message } = error as Error & { readonly command?: { readonly name: string } }
      isRefused = command?.name === "select" && !message.startsWith("NOAUTH ")
      note(error)
      if (isRefused) client.disconnect()
    })
    client.on("node error", note)
    if (client instanceof Cluster) client.on("+node", (node: Redis) => node.on("ready", () => succeed(node)))
    client.on("ready", () => {
      if (!(client instanceof Cluster)) succeed(client)
      timers.start(heartbeat, timers.now() + timeout / 2)
      reconnect.onUp()
    })
    client.on("end", () => {
      isRefused = false
      reconnect.onDown()
    })

    /** What servers call the last connection to them: id and address, which no other has, also after a restart. */
    const names = new Map<string, ReadonlyArray<string>>()
    const succeed = (node: Redis) => {
      const server = `${node.options.host}:${node.options.port}`
      const name = names.get(server)
      if (name !== undefined) node.call("client", "kill", ...name).catch(() => undefined)
      node.call("client", "info").then(
        (info) => {
          const [, id, address] = /^id=(\d+) addr=(\S+)/.exec(String(info)) ?? []
          if (address !== undefined) names.set(server, ["id", id!, "addr", address])
        },
        () => undefined
      )
    }

    // The socket's timeout does the rest: it watches whoever owes an answer.
    const heartbeat = new Timers.Call(() => {
      if (client.status !== "ready") return
      options.flush?.()
      for (const node of nodesOf(client)) if (node.status === "ready") node.ping().catch(() => undefined)
      timers.start(heartbeat, timers.now() + timeout / 2)
    })

    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        timers.cancel(heartbeat)
        reconnect.close()
        // What is written goes out, but nobody waits for the other side to say goodbye: it may be dead.
        const streams = nodesOf(client).map(({ stream }) => stream as Socket | undefined)
        // One that has ended has nothing to end; asked to, ioredis would keep the process for two seconds more.
        if (client.status !== "end") client.disconnect()
        for (const stream of streams) {
          stream?.setTimeout(timeout, () => stream.destroy())
          stream?.destroySoon()
        }
      })
    )

    return {
      client,
      isReady: () =>
        reconnect.state() === "ready" &&
        client.status === "ready" &&
        (client instanceof Cluster || client.stream.writable),
      connect: reconnect.connect,
      tryNow: reconnect.tryNow,
      state: reconnect.state,
      lastError: reconnect.lastError
    }
  })

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
