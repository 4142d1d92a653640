/**
 * A TCP proxy on 127.0.0.1 in front of a server, to cut connections the way
 * networks do.
 *
 * - `reset`: RST on every connection there is; new ones are served.
 * - `refuse`: new connections are reset as well, until `heal`. Those there are stay.
 * - `blackhole`: connections stay open and new ones are accepted, but no byte
 *   passes and no FIN tells; connections of that time stay dead after `heal`.
 * - `stall`: what passes on the connections there are arrives when it is healed, also if they are closed meanwhile. New
 *   ones are served.
 * - `latency`: bytes and closes pass that much later, in order.
 * - `heal`: new connections are served again. The latency stays.
 *
 * @since 0.2.0
 */
import { connect, createServer, type Socket } from "node:net"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"

/**
 * A proxy that serves; see the module for what each way of cutting does.
 *
 * @since 0.2.0
 */
export interface TcpProxy {
  readonly port: number
  readonly reset: Effect.Effect<void>
  readonly refuse: Effect.Effect<void>
  readonly blackhole: Effect.Effect<void>
  readonly stall: Effect.Effect<void>
  readonly heal: Effect.Effect<void>
  /** In milliseconds, each way; zero for at once. */
  readonly latency: (millis: number) => Effect.Effect<void>
}

interface Pair {
  readonly sockets: readonly [Socket, Socket]
  dead: boolean
  /** What is to pass when it is healed, while it is stalled. */
  held: Array<() => void> | undefined
}

/**
 * Listens on a free port of 127.0.0.1 until the scope closes, in front of `target`.
 *
 * @since 0.2.0
 */
export const make = (target: {
  readonly host: string
  readonly port: number
}): Effect.Effect<TcpProxy, never, Scope.Scope> =>
  Effect.gen(function* () {
    let mode: "open" | "refuse" | "blackhole" = "open"
    let latency = 0
    const pairs = new Set<Pair>()

    /** Passes on what one side says, until the pair is dead. */
    const pass = (pair: Pair, from: Socket, to: Socket) => {
      const waiting: Array<() => void> = []
      const later = (act: () => void) => {
        if (pair.held !== undefined) return void pair.held.push(() => pair.dead || act())
        if (latency === 0 && waiting.length === 0) return pair.dead || act()
        // Whichever timer comes first takes the head, so that a shorter latency overtakes nothing.
        waiting.push(act)
        setTimeout(() => {
          const next = waiting.shift()
          if (!pair.dead) next?.()
        }, latency)
      }
      from.on("data", (bytes) => later(() => to.writable && to.write(bytes)))
      from.on("end", () => later(() => to.end()))
      from.on("error", () => undefined)
      from.on("close", (hadError) =>
        later(() => {
          pairs.delete(pair)
          if (hadError) to.resetAndDestroy()
          else to.destroySoon()
        })
      )
    }

    const server = createServer((client) => {
      client.on("error", () => undefined)
      if (mode === "refuse") return void client.resetAndDestroy()
      const upstream = connect(target.port, target.host)
      client.setNoDelay(true)
      upstream.setNoDelay(true)
      const pair: Pair = { sockets: [client, upstream] as const, dead: mode === "blackhole", held: undefined }
      pairs.add(pair)
      pass(pair, client, upstream)
      pass(pair, upstream, client)
    })

    const resetAll = () => {
      for (const pair of pairs) {
        pair.dead = true
        for (const socket of pair.sockets) socket.resetAndDestroy()
      }
      pairs.clear()
    }

    yield* Effect.acquireRelease(
      Effect.callback<void>((resume) => {
        server.listen(0, "127.0.0.1", () => resume(Effect.void))
      }),
      () =>
        Effect.callback<void>((resume) => {
          server.close(() => resume(Effect.void))
          resetAll()
        })
    )
    const address = server.address()

    return {
      port: typeof address === "object" && address !== null ? address.port : 0,
      reset: Effect.sync(resetAll),
      refuse: Effect.sync(() => {
        mode = "refuse"
      }),
      blackhole: Effect.sync(() => {
        mode = "blackhole"
        for (const pair of pairs) pair.dead = true
      }),
      stall: Effect.sync(() => {
        for (const pair of pairs) pair.held ??= []
      }),
      heal: Effect.sync(() => {
        mode = "open"
        for (const pair of pairs) {
          const held = pair.held ?? []
          pair.held = undefined
          for (const act of held) act()
        }
      }),
      latency: (millis) =>
        Effect.sync(() => {
          latency = millis
        })
    }
  })
