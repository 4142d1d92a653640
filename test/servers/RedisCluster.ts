/**
 * A private Redis Cluster: three masters without replicas, each with a third of
 * the slots. It is whole, in the eyes of every node, when it is handed out.
 */
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import * as RedisServer from "./RedisServer.ts"

export interface RedisCluster {
  readonly nodes: ReadonlyArray<RedisServer.RedisServer>
}

const slots = [
  ["0", "5460"],
  ["5461", "10922"],
  ["10923", "16383"]
] as const

export const make: Effect.Effect<RedisCluster, never, Scope.Scope> = Effect.gen(function* () {
  const args = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-announce-ip", "127.0.0.1"]
  const nodes = yield* Effect.forEach(slots, () => RedisServer.make({ args }), { concurrency: 3 })
  // An epoch must be set before a node knows others; without it they would have to settle on theirs.
  yield* Effect.forEach(nodes, (node, i) => node.command("CLUSTER", "SET-CONFIG-EPOCH", String(i + 1)))
  yield* Effect.forEach(nodes, (node, i) => node.command("CLUSTER", "ADDSLOTSRANGE", ...slots[i]!))
  yield* Effect.forEach(nodes, ({ port }) => nodes[0]!.command("CLUSTER", "MEET", "127.0.0.1", String(port)))

  const infos = Effect.forEach(nodes, (node) => Effect.map(node.command("CLUSTER", "INFO"), String))
  let last: ReadonlyArray<string> = []
  yield* Effect.promise(() =>
    RedisServer.waitUntil(
      async () => {
        last = await Effect.runPromise(infos)
        return last.every((info) => info.includes("cluster_state:ok") && info.includes("cluster_known_nodes:3"))
      },
      () => `the Redis Cluster does not form:\n${last.join("\n")}`
    )
  )
  return { nodes }
})

let running: Promise<RedisCluster> | undefined

/** One that the tests of this process share; it dies with the process. */
export const shared: Effect.Effect<RedisCluster> = Effect.promise(() => {
  // A scope that nobody closes: the shells end the servers with this process.
  running ??= Effect.runPromise(Effect.flatMap(Scope.make(), (scope) => Scope.provide(make, scope)))
  return running
})
