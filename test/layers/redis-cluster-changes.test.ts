/** A Redis Cluster that changes while it is used: slots move, nodes come, go and die. */
import { spawn } from "node:child_process"
import { readFileSync } from "node:fs"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Logger from "effect/Logger"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import { RedisConnection } from "../../src/layers/redis/index.ts"
import * as RedisScript from "../../src/layers/redis/RedisScript.ts"
import * as Certificates from "../servers/certificates.ts"
import * as RedisCluster from "../servers/RedisCluster.ts"
import type * as RedisServer from "../servers/RedisServer.ts"

const test = <A, E>(name: string, body: Effect.Effect<A, E, Scope.Scope>): void =>
  it.live(name, () => Effect.provide(body, Logger.layer([])))

const addresses = (nodes: ReadonlyArray<RedisServer.RedisServer>) =>
  nodes.map(({ port }) => ({ host: "127.0.0.1", port }))

const connect = (nodes: ReadonlyArray<RedisServer.RedisServer>, timeout: "2 seconds" | "10 seconds" = "2 seconds") =>
  RedisConnection.make({ timeout, cluster: { nodes: addresses(nodes) } })

const until = (condition: Effect.Effect<boolean>) =>
  Effect.asVoid(Effect.repeat(condition, { until: (holds) => holds, schedule: Schedule.spaced("20 millis") }))

const replicate = (master: RedisServer.RedisServer, replica: RedisServer.RedisServer) =>
  Effect.gen(function* () {
    yield* replica.command("CLUSTER", "REPLICATE", yield* RedisCluster.idOf(master))
    yield* until(Effect.map(replica.command("INFO", "replication"), (info) => String(info).includes("link_status:up")))
  })

/** A name in the slots of the first node. */
const nameOfFirst = (cluster: RedisCluster.RedisCluster, prefix: string) =>
  Effect.gen(function* () {
    for (let i = 0; ; i++) if ((yield* RedisCluster.slotOf(cluster, `${prefix}${i}`)) <= 5460) return `${prefix}${i}`
  })

/** Neither is for repeating: each counts what has run. */
const countBoth = RedisScript.make("return {redis.call('incr', KEYS[1]), redis.call('incr', KEYS[2])}")

describe("A Redis Cluster that changes", () => {
  test(
    "while a slot moves to a node that nobody knew, commands follow its keys, and scripts wait for them",
    Effect.gen(function* () {
      const cluster = yield* RedisCluster.makeWithSpare
      const { nodes, spare } = cluster
      const name = yield* nameOfFirst(cluster, "name")
      const slot = yield* RedisCluster.slotOf(cluster, name)
      const keys = ["1", "2", "3", "4"].map((n) => `{${name}}${n}`)
      const connection = yield* connect(nodes)
      const incr = Effect.forEach(keys, (key) => connection.send<number>("incr", [key]), { concurrency: "unbounded" })
      assert.deepStrictEqual(yield* incr, [1, 1, 1, 1])
      const scripts: Array<Fiber.Fiber<unknown, unknown>> = []
      yield* RedisCluster.move(
        slot,
        nodes[0]!,
        spare,
        Effect.gen(function* () {
          assert.deepStrictEqual(yield* incr, [2, 2, 2, 2])
          for (const key of keys.slice(1)) {
            scripts.push(yield* Effect.forkChild(connection.run(countBoth, [keys[0]!, key], [])))
          }
          yield* Effect.sleep("300 millis")
        })
      )
      yield* Effect.forEach(scripts, Fiber.join)
      assert.deepStrictEqual(yield* incr, [6, 4, 4, 4])
      // What needs keys that are not all in one place fails in time, and says why.
      yield* RedisCluster.move(
        slot,
        spare,
        nodes[0]!,
        Effect.gen(function* () {
          const error = yield* Effect.flip(connection.run(countBoth, [keys[0]!, `{${name}}none`], []))
          assert.strictEqual(error._tag, "Unavailable")
          assert.include(error.message, "TRYAGAIN")
        })
      )
      assert.deepStrictEqual(yield* incr, [7, 5, 5, 5])
    })
  )

  test(
    "when a replica takes over, by order or because its master died, what had not left waits for it",
    Effect.gen(function* () {
      const cluster = yield* RedisCluster.makeWithSpare
      const { nodes, spare } = cluster
      const [first] = nodes
      yield* replicate(first!, spare)
      const key = yield* nameOfFirst(cluster, "key")
      const connection = yield* connect(nodes, "10 seconds")
      let count = 0
      let stopped = false
      const counting = yield* Effect.forkChild(
        Effect.gen(function* () {
          while (!stopped) {
            assert.strictEqual(yield* connection.send("incr", [key]), ++count)
            yield* Effect.sleep("2 millis")
          }
        })
      )
      const goesOn = Effect.suspend(() => {
        const before = count
        return until(Effect.sync(() => count > before + 10 || counting.pollUnsafe() !== undefined))
      })
      yield* goesOn
      yield* spare.command("CLUSTER", "FAILOVER")
      yield* until(Effect.map(spare.command("ROLE"), (role) => (role as Array<unknown>)[0] === "master"))
      yield* goesOn
      stopped = true
      yield* Fiber.join(counting)
      yield* until(Effect.map(first!.command("INFO", "replication"), (info) => String(info).includes("link_status:up")))
      yield* spare.kill
      // Its connection is gone: nothing leaves for it.
      yield* Effect.sleep("100 millis")
      assert.isNumber(yield* connection.send("incr", [key]))
    })
  )

  test(
    "messages of one channel keep their order when a node dies",
    Effect.gen(function* () {
      const cluster = yield* RedisCluster.make
      const { nodes } = cluster
      const channel = yield* nameOfFirst(cluster, "channel")
      const connection = yield* connect(nodes)
      const listening = yield* connect(nodes.slice(1))
      const heard: Array<number> = []
      yield* listening.subscribe(
        channel,
        (message) => heard.push(Number(message)),
        () => undefined
      )
      yield* nodes[0]!.kill
      yield* Effect.sleep("100 millis")
      yield* Effect.forEach(
        Array.from({ length: 1_000 }, (_, i) => i),
        (i) => Effect.ignore(connection.publish(channel, String(i), false)),
        { concurrency: 20 }
      )
      yield* until(Effect.sync(() => heard.includes(999)))
      assert.isAbove(heard.length, 900)
      assert.deepStrictEqual(
        heard,
        heard.toSorted((a, b) => a - b)
      )
    })
  )

  test(
    "who listens to a node that is taken out of the cluster moves to another one",
    Effect.gen(function* () {
      const cluster = yield* RedisCluster.makeWithSpare
      const { nodes, spare } = cluster
      // It has to have a slot for a while, to be known.
      yield* RedisCluster.move(0, nodes[0]!, spare)
      const listening = yield* connect([spare])
      const connection = yield* connect(nodes)
      const heard: Array<string> = []
      yield* listening.subscribe(
        "channel",
        (message) => heard.push(message),
        () => heard.push("gap")
      )
      assert.include(String(yield* spare.command("PUBSUB", "CHANNELS")), "channel")
      yield* RedisCluster.move(0, spare, nodes[0]!)
      const id = yield* RedisCluster.idOf(spare)
      yield* Effect.forEach(nodes, (node) => node.command("CLUSTER", "FORGET", id))
      yield* spare.command("CLUSTER", "RESET", "SOFT")
      yield* Effect.raceFirst(
        Effect.forever(Effect.delay(connection.publish("channel", "message", false), "100 millis")),
        // Who publishes may have been at that node, too.
        until(Effect.sync(() => heard.includes("gap") && heard.at(-1) === "message"))
      ).pipe(Effect.timeout("10 seconds"))
    })
  )

  test(
    "a connection that is lost is made again through nodes that were not named, when those that were have gone",
    Effect.gen(function* () {
      const { nodes, spare } = yield* RedisCluster.makeWithSpare
      yield* RedisCluster.move(0, nodes[0]!, spare)
      const connection = yield* connect([spare])
      const events: Array<string> = []
      yield* connection.subscribe(
        "channel",
        (message) => events.push(message),
        () => events.push("gap")
      )
      yield* RedisCluster.move(0, spare, nodes[0]!)
      const id = yield* RedisCluster.idOf(spare)
      yield* Effect.forEach(nodes, (node) => node.command("CLUSTER", "FORGET", id))
      yield* spare.kill
      yield* until(Effect.sync(() => events.includes("gap")))
      // All at once: those that are left drop its connections.
      yield* Effect.forEach(nodes, (node) => node.command("CLIENT", "KILL", "TYPE", "normal"), {
        concurrency: "unbounded"
      })
      yield* Effect.sleep("100 millis")
      yield* Effect.retry(connection.send("set", ["key", "value"]), Schedule.recurs(3))
      assert.strictEqual(yield* connection.send("get", ["key"]), "value")
    })
  )

  test(
    "certificates are checked for the names of nodes, not for what those resolve to",
    Effect.gen(function* () {
      const tls = yield* Certificates.make
      const { nodes } = yield* RedisCluster.makeWith({
        tls,
        args: ["--tls-cluster", "yes", "--tls-replication", "yes"].concat(
          ["--cluster-announce-hostname", "localhost"],
          ["--cluster-preferred-endpoint-type", "hostname"]
        )
      })
      const connection = yield* RedisConnection.make({
        timeout: "2 seconds",
        cluster: { nodes: nodes.map(({ port }) => ({ host: "localhost", port })) },
        tls: {
          ca: readFileSync(tls.ca),
          checkServerIdentity: (host) => (host === "localhost" ? undefined : new Error(`no certificate for ${host}`))
        }
      })
      const keys = Array.from({ length: 10 }, (_, i) => `key ${i}`)
      yield* Effect.forEach(keys, (key) => connection.send("set", [key, "value"]))
      yield* connection.subscribe(
        "channel",
        () => undefined,
        () => undefined
      )
    })
  )

  test(
    "a process that closes its connection while no node is there ends",
    Effect.gen(function* () {
      const { nodes } = yield* RedisCluster.make
      const code = `
        const { Effect } = await import("effect")
        const { RedisConnection } = await import(${JSON.stringify(import.meta.resolve("../../src/layers/redis/index.ts"))})
        const options = ${JSON.stringify({ timeout: "1 second", cluster: { nodes: addresses(nodes) } })}
        await Effect.runPromise(Effect.scoped(Effect.gen(function* () {
          const connection = yield* RedisConnection.make(options)
          console.log("connected")
          while ((yield* connection.state).commands === "ready") yield* Effect.sleep("10 millis")
        })))`
      const child = yield* Effect.acquireRelease(
        Effect.sync(() =>
          spawn(process.execPath, ["--input-type=module", "-e", code], { stdio: ["ignore", "pipe", "ignore"] })
        ),
        (it) => Effect.sync(() => it.kill("SIGKILL"))
      )
      const exited = new Promise((resolve) => child.once("exit", resolve))
      yield* Effect.promise(() => new Promise((resolve) => child.stdout.once("data", resolve)))
      yield* Effect.forEach(nodes, (node) => node.kill, { concurrency: "unbounded" })
      yield* Effect.timeout(
        Effect.promise(() => exited),
        "5 seconds"
      )
      assert.strictEqual(child.exitCode, 0)
    })
  )

  test(
    "while a node is away, what waits for it does not keep the others busy",
    Effect.gen(function* () {
      const cluster = yield* RedisCluster.make
      const { nodes } = cluster
      const key = yield* nameOfFirst(cluster, "key")
      const connection = yield* connect(nodes)
      yield* nodes[0]!.kill
      yield* Effect.sleep("100 millis")
      const asked = yield* Effect.forEach(Array.from({ length: 200 }), () =>
        Effect.delay(
          Effect.forkChild(Effect.exit(connection.send("get", [key], { retry: true })), { startImmediately: true }),
          "5 millis"
        )
      )
      for (const exit of yield* Effect.forEach(asked, Fiber.join)) assert.isTrue(Exit.isFailure(exit))
      const calls = yield* Effect.forEach(nodes.slice(1), (node) => node.command("INFO", "errorstats"))
      const refused = calls.flatMap((stats) =>
        [...String(stats).matchAll(/errorstat_(?:MOVED|CLUSTERDOWN):count=(\d+)/g)].map(([, count]) => Number(count))
      )
      // Each asks twenty times within its timeout, and once at first.
      const total = refused.reduce((sum, count) => sum + count, 0)
      assert.isBelow(total, 200 * 30)
    })
  )
})
