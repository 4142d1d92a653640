/**
 * A private Redis Cluster: three masters without replicas, each with a third of
 * the slots, and if wanted one more node that has none. It is whole, in the eyes of
 * every node, when it is handed out.
 */
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import * as RedisServer from "./RedisServer.ts"

export interface RedisCluster {
  readonly nodes: ReadonlyArray<RedisServer.RedisServer>
}

export interface RedisClusterWithSpare extends RedisCluster {
  /** Knows the others, and has no slots. */
  readonly spare: RedisServer.RedisServer
}

const slots = [
  ["0", "5460"],
  ["5461", "10922"],
  ["10923", "16383"]
] as const

const args = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-announce-ip", "127.0.0.1"]
// Who gives its last slot away stays a master.
args.push("--cluster-allow-replica-migration", "no")

const start = (count: number, options: RedisServer.Options) =>
  Effect.gen(function* () {
    const nodes = yield* Effect.forEach(
      Array.from({ length: count }),
      () => RedisServer.make({ ...options, args: [...args, ...(options.args ?? [])] }),
      { concurrency: count }
    )
    // An epoch must be set before a node knows others; without it they would have to settle on theirs.
    yield* Effect.forEach(nodes, (node, i) => node.command("CLUSTER", "SET-CONFIG-EPOCH", String(i + 1)))
    yield* Effect.forEach(slots, (range, i) => nodes[i]!.command("CLUSTER", "ADDSLOTSRANGE", ...range))
    yield* Effect.forEach(nodes, ({ port }) => nodes[0]!.command("CLUSTER", "MEET", "127.0.0.1", String(port)))

    const infos = Effect.forEach(nodes, (node) => Effect.map(node.command("CLUSTER", "INFO"), String))
    let last: ReadonlyArray<string> = []
    yield* Effect.promise(() =>
      RedisServer.waitUntil(
        async () => {
          last = await Effect.runPromise(infos)
          return last.every(
            (info) => info.includes("cluster_state:ok") && info.includes(`cluster_known_nodes:${count}`)
          )
        },
        () => `the Redis Cluster does not form:\n${last.join("\n")}`
      )
    )
    return nodes
  })

/** With options of every node. */
export const makeWith = (options: RedisServer.Options): Effect.Effect<RedisCluster, never, Scope.Scope> =>
  Effect.map(start(3, options), (nodes) => ({ nodes }))

export const make: Effect.Effect<RedisCluster, never, Scope.Scope> = makeWith({})

export const makeWithSpare: Effect.Effect<RedisClusterWithSpare, never, Scope.Scope> = Effect.map(
  start(4, {}),
  (nodes) => ({ nodes: nodes.slice(0, 3), spare: nodes[3]! })
)

/** The slot of a key, or of the key between the braces. */
export const slotOf = ({ nodes }: RedisCluster, key: string): Effect.Effect<number> =>
  Effect.map(nodes[0]!.command("CLUSTER", "KEYSLOT", key), Number)

export const idOf = (node: RedisServer.RedisServer): Effect.Effect<string> =>
  Effect.map(node.command("CLUSTER", "MYID"), String)

/** Gives a slot to another node, with its keys, one by one, and `during` when half of them have moved. */
export const move = (
  slot: number,
  from: RedisServer.RedisServer,
  to: RedisServer.RedisServer,
  during: Effect.Effect<void, unknown> = Effect.void
): Effect.Effect<void, unknown> =>
  Effect.gen(function* () {
    const [source, target] = [yield* idOf(from), yield* idOf(to)]
    const setSlot = (node: RedisServer.RedisServer, ...how: ReadonlyArray<string>) =>
      node.command("CLUSTER", "SETSLOT", String(slot), ...how)
    yield* setSlot(to, "IMPORTING", source)
    yield* setSlot(from, "MIGRATING", target)
    const keys = Effect.map(
      from.command("CLUSTER", "GETKEYSINSLOT", String(slot), "1000"),
      (keys) => keys as Array<string>
    )
    const half = (yield* keys).length / 2
    let moved = 0
    for (let left = yield* keys; left.length > 0; left = yield* keys) {
      if (moved++ === Math.floor(half)) yield* during
      yield* from.command("MIGRATE", "127.0.0.1", String(to.port), left[0]!, "0", "5000")
    }
    if (moved <= half) yield* during
    yield* setSlot(to, "NODE", target)
    yield* setSlot(from, "NODE", target)
  })

let running: Promise<RedisCluster> | undefined

/** One that the tests of this process share; it dies with the process. */
export const shared: Effect.Effect<RedisCluster> = Effect.promise(() => {
  // A scope that nobody closes: the shells end the servers with this process.
  running ??= Effect.runPromise(Effect.flatMap(Scope.make(), (scope) => Scope.provide(make, scope)))
  return running
})
