/**
 * A private Redis under a Sentinel: a master, its replica, and one sentinel that
 * decides alone. When it is handed out the sentinel knows the replica and could
 * promote it.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as RedisServer from "./RedisServer.ts"

export interface RedisSentinel {
  /** The name of the master, as clients ask for it. */
  readonly name: string
  readonly sentinel: RedisServer.RedisServer
  /** Master and replica, as they were at first. */
  readonly servers: readonly [RedisServer.RedisServer, RedisServer.RedisServer]
  /** The master in the eyes of the sentinel. */
  readonly master: Effect.Effect<RedisServer.RedisServer>
  /** Hands over to the replica, both alive; returns when that is the master. */
  readonly failOver: Effect.Effect<void>
  /** Kills the master, with what it has not yet replicated; returns when the replica is the master. */
  readonly killMaster: Effect.Effect<void>
}

const name = "cohort"

const config = (port: number) => `
sentinel monitor ${name} 127.0.0.1 ${port} 1
sentinel down-after-milliseconds ${name} 500
sentinel failover-timeout ${name} 5000
`

export const make: Effect.Effect<RedisSentinel, never, Scope.Scope> = Effect.gen(function* () {
  // At once, instead of waiting for more replicas to copy to.
  const args = ["--repl-diskless-sync-delay", "0"]
  const first = yield* RedisServer.make({ args })
  const second = yield* RedisServer.make({ args: [...args, "--replicaof", "127.0.0.1", String(first.port)] })
  const servers = [first, second] as const

  /** The line of a server's INFO. */
  const says = async (server: RedisServer.RedisServer, line: string) =>
    String(await Effect.runPromise(server.command("INFO", "replication"))).includes(`${line}\r\n`)

  // A sentinel looks for replicas when it meets the master, and then only every ten seconds.
  yield* Effect.promise(() =>
    RedisServer.waitUntil(
      async () => (await says(second, "master_link_status:up")) && (await says(first, "connected_slaves:1")),
      () => "the replica does not reach its master"
    )
  )
  const sentinel = yield* RedisServer.make({ config: config(first.port), args: ["--sentinel"] })

  // Left alone it takes half a minute to see that the old master is a replica now.
  yield* sentinel.command("SENTINEL", "DEBUG", "INFO-PERIOD", "200", "PUBLISH-PERIOD", "200")

  const ask = (command: string) => Effect.runPromise(sentinel.command("SENTINEL", command, name))

  const currentMaster = async () => {
    const [, port] = (await ask("GET-MASTER-ADDR-BY-NAME")) as [string, string]
    return servers.find((server) => server.port === Number(port))!
  }

  const canFailOver = async () => {
    const replicas = (await ask("REPLICAS")) as ReadonlyArray<ReadonlyArray<string>>
    return replicas.some(
      (fields) => fields.includes("slave") && fields[fields.indexOf("master-link-status") + 1] === "ok"
    )
  }

  /** The servers' own word: what the sentinel says of a link may be from before the last promotion. */
  const isReplicated = async () => {
    const master = await currentMaster()
    const replica = servers.find((server) => server !== master)!
    const replication = String(await Effect.runPromise(replica.command("INFO", "replication")))
    return [`master_port:${master.port}`, "master_link_status:up"].every((line) => replication.includes(`${line}\r\n`))
  }

  const untilReady = () =>
    RedisServer.waitUntil(
      async () => (await canFailOver()) && (await isReplicated()),
      () => "the sentinel knows no replica that is well"
    )

  /** Does what makes the sentinel promote the replica, and waits until it has. */
  const promotion = (cause: (master: RedisServer.RedisServer) => Effect.Effect<unknown>) =>
    Effect.promise(async () => {
      await untilReady()
      const before = await currentMaster()
      await Effect.runPromise(cause(before))
      await RedisServer.waitUntil(
        async () => {
          const now = await currentMaster()
          return now !== before && (await says(now, "role:master"))
        },
        () => "the sentinel does not fail over"
      )
    })

  yield* Effect.promise(untilReady)
  return {
    name,
    sentinel,
    servers,
    master: Effect.promise(currentMaster),
    failOver: promotion(() => sentinel.command("SENTINEL", "FAILOVER", name)),
    killMaster: promotion((master) => master.kill)
  }
})
