/** The servers that other tests rely on do what they say. */
import { spawn } from "node:child_process"
import { existsSync } from "node:fs"
import { connect, createServer, type Socket } from "node:net"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { PgClient } from "@effect/sql-pg"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql"
import { Cluster, Redis } from "ioredis"
import * as certificates from "./certificates.ts"
import * as PostgresServer from "./PostgresServer.ts"
import * as RedisCluster from "./RedisCluster.ts"
import * as RedisSentinel from "./RedisSentinel.ts"
import * as RedisServer from "./RedisServer.ts"
import * as TcpProxy from "./TcpProxy.ts"

const eventually = (condition: () => Promise<boolean> | boolean, what: string) =>
  Effect.promise(() => RedisServer.waitUntil(condition, () => `never happened: ${what}`))

const isAlive = (pid: number) => {
  try {
    return process.kill(pid, 0)
  } catch {
    return false
  }
}

/** A client that goes with the scope, and does not reconnect. */
const use = <C extends Redis | Cluster>(make: () => C) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const client = make()
      client.on("error", () => undefined)
      return client
    }),
    (client) => Effect.sync(() => client.disconnect())
  )

/** A process starts the server and is killed. */
const orphaned = (module: string) =>
  Effect.gen(function* () {
    const script = `
      import * as Effect from "effect/Effect"
      import { make } from ${JSON.stringify(join(import.meta.dirname, module))}
      setInterval(() => undefined, 1_000)
      await Effect.runPromise(Effect.scoped(Effect.gen(function* () {
        const { pid, folder } = yield* make()
        console.log(JSON.stringify({ pid: pid(), folder }))
        yield* Effect.never
      })))`
    const parent = spawn(process.execPath, ["--input-type=module", "-e", script])
    let output = ""
    for (const pipe of [parent.stdout, parent.stderr]) pipe.on("data", (text) => (output += text))
    yield* eventually(() => output.endsWith("}\n"), "the server of the other process")
    const { pid, folder } = JSON.parse(output) as { pid: number; folder: string }
    assert.isTrue(isAlive(pid))
    parent.kill("SIGKILL")
    yield* eventually(() => !isAlive(pid), "its end")
    yield* eventually(() => !existsSync(folder), "the end of its folder")
  })

describe("RedisServer", () => {
  it.live("answers, and ends with its scope", () =>
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const server = yield* Scope.provide(RedisServer.make(), scope)
      const pid = server.pid()
      assert.strictEqual(yield* server.command("PING"), "PONG")
      assert.isTrue(isAlive(pid))
      yield* Scope.close(scope, Exit.void)
      assert.isFalse(isAlive(pid))
      assert.isFalse(existsSync(server.folder))
    })
  )

  it.live("keeps port and data over kill, stop and start", () =>
    Effect.gen(function* () {
      const server = yield* RedisServer.make({ fsync: "always" })
      for (const end of [server.kill, server.stop]) {
        yield* server.command("INCR", "count")
        const pid = server.pid()
        yield* end
        assert.isFalse(isAlive(pid))
        yield* server.start
        assert.notStrictEqual(server.pid(), pid)
      }
      assert.strictEqual(yield* server.command("GET", "count"), "2")
    })
  )

  it.live("says nothing while it is frozen, and is stopped all the same", () =>
    Effect.gen(function* () {
      const server = yield* RedisServer.make()
      const client = yield* use(() => new Redis(server.port, "127.0.0.1", { retryStrategy: () => null }))
      yield* Effect.promise(() => client.ping())
      yield* server.freeze
      let pong = ""
      const ping = client.ping().then((text) => {
        pong = text
      })
      yield* Effect.sleep("100 millis")
      assert.strictEqual(pong, "")
      yield* server.thaw
      yield* Effect.promise(() => ping)
      assert.strictEqual(pong, "PONG")
      yield* server.freeze
      yield* server.stop
      assert.strictEqual(server.pid(), 0)
    })
  )

  it.live("says why it does not start", () =>
    Effect.gen(function* () {
      const exit = yield* Effect.exit(RedisServer.make({ args: ["--nonsense", "1"] }))
      assert.isTrue(Exit.isFailure(exit))
      assert.include(String(exit), "FATAL CONFIG FILE ERROR")
    })
  )

  it.live("many start at once, each on a port of its own", () =>
    Effect.gen(function* () {
      const servers = yield* Effect.forEach(Array.from({ length: 8 }), () => RedisServer.make(), { concurrency: 8 })
      assert.strictEqual(new Set(servers.map(({ port }) => port)).size, 8)
    })
  )

  it.live("the shared server is one", () =>
    Effect.gen(function* () {
      const [a, b] = yield* Effect.all([RedisServer.sharedUrl, RedisServer.sharedUrl], { concurrency: 2 })
      assert.strictEqual(a, b)
    })
  )

  it.live("dies with the process that started it, even on SIGKILL", () => orphaned("RedisServer.ts"))

  it.live("speaks TLS to those who trust its authority, and to nobody else", () =>
    Effect.gen(function* () {
      const tls = yield* certificates.make
      const server = yield* RedisServer.make({ tls })
      assert.isTrue(server.url.startsWith("rediss://"))
      assert.strictEqual(yield* server.command("PING"), "PONG")
      const stranger = yield* use(() => new Redis(server.url, { retryStrategy: () => null }))
      const error = yield* Effect.promise(() => stranger.ping().catch(String))
      assert.notStrictEqual(error, "PONG")
    })
  )
})

/** One query, on a connection of its own. */
const query = (url: string, statement: string) =>
  SqlClient.SqlClient.use((sql) => sql.unsafe(statement)).pipe(
    Effect.provide(PgClient.layer({ url: Redacted.make(url), maxConnections: 1 }))
  )

describe("PostgresServer", () => {
  it.live("answers, and ends with its scope", () =>
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const server = yield* Scope.provide(PostgresServer.make({ settings: { max_connections: "17" } }), scope)
      const pid = server.pid()
      assert.deepStrictEqual(yield* query(server.url, "SHOW max_connections"), [{ max_connections: "17" }])
      assert.isTrue(isAlive(pid))
      yield* Scope.close(scope, Exit.void)
      assert.isFalse(isAlive(pid))
      assert.isFalse(existsSync(server.folder))
    })
  )

  it.live("keeps port and data over kill, stop and start, with a session open", () =>
    Effect.gen(function* () {
      const server = yield* PostgresServer.make()
      yield* query(server.url, "CREATE TABLE t (n int)")
      for (const end of [server.kill, server.stop]) {
        const busy = yield* Effect.forkChild(Effect.exit(query(server.url, "SELECT pg_sleep(60)")))
        yield* eventually(
          () =>
            Effect.runPromise(
              query(server.url, "SELECT 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'")
            ).then((rows) => rows.length > 0),
          "a session"
        )
        yield* query(server.url, "INSERT INTO t VALUES (1)")
        const pid = server.pid()
        yield* end
        assert.isFalse(isAlive(pid))
        assert.isTrue(Exit.isFailure(yield* Fiber.join(busy)))
        assert.isTrue(Exit.isFailure(yield* Effect.exit(query(server.url, "SELECT 1"))))
        yield* server.start
        assert.notStrictEqual(server.pid(), pid)
      }
      assert.deepStrictEqual(yield* query(server.url, "SELECT count(*)::int AS count FROM t"), [{ count: 2 }])
    })
  )

  it.live("says nothing while it is frozen, and is stopped all the same", () =>
    Effect.gen(function* () {
      const server = yield* PostgresServer.make()
      yield* server.freeze
      const answer = yield* Effect.forkChild(query(server.url, "SELECT 1 AS one"))
      yield* Effect.sleep("100 millis")
      assert.isUndefined(answer.pollUnsafe())
      yield* server.thaw
      assert.deepStrictEqual(yield* Fiber.join(answer), [{ one: 1 }])
      yield* server.freeze
      yield* server.stop
      assert.strictEqual(server.pid(), 0)
    })
  )

  it.live("says why it does not start", () =>
    Effect.gen(function* () {
      const exit = yield* Effect.exit(PostgresServer.make({ settings: { nonsense: "1" } }))
      assert.isTrue(Exit.isFailure(exit))
      assert.include(String(exit), "unrecognized configuration parameter")
    })
  )

  it.live("databases of the shared server are apart", () =>
    Effect.gen(function* () {
      const urls = yield* Effect.all([PostgresServer.database, PostgresServer.database], { concurrency: 2 })
      for (const url of urls) yield* query(url, "CREATE TABLE t (n int)")
      const scope = yield* Scope.make()
      const url = yield* Scope.provide(PostgresServer.database, scope)
      yield* query(url, "SELECT 1")
      yield* Scope.close(scope, Exit.void)
      assert.isTrue(Exit.isFailure(yield* Effect.exit(query(url, "SELECT 1"))))
    })
  )

  it.live("dies with the process that started it, even on SIGKILL", () => orphaned("PostgresServer.ts"))
})

describe("RedisCluster", () => {
  it.live("serves every slot", () =>
    Effect.gen(function* () {
      const { nodes } = yield* RedisCluster.make
      const client = yield* use(() => new Cluster(nodes.map(({ port }) => ({ host: "127.0.0.1", port }))))
      const keys = Array.from({ length: 50 }, (_, i) => `key-${i}`)
      yield* Effect.promise(() => Promise.all(keys.map((key) => client.set(key, key))))
      const sizes = yield* Effect.forEach(nodes, (node) => node.command("DBSIZE"))
      assert.isTrue(sizes.every((size) => Number(size) > 0))
      assert.strictEqual(
        sizes.reduce<number>((sum, size) => sum + Number(size), 0),
        keys.length
      )
    })
  )
})

describe("RedisSentinel", () => {
  it.live("fails over when asked, and when the master is killed", () =>
    Effect.gen(function* () {
      const { name, sentinel, servers, master, failOver, killMaster } = yield* RedisSentinel.make
      const sentinels = [{ host: "127.0.0.1", port: sentinel.port }]
      const client = yield* use(() => new Redis({ sentinels, name }))
      yield* Effect.promise(() => client.set("key", "value"))
      // The sentinel promotes the replica as it is: what has not reached it is gone.
      assert.strictEqual(yield* Effect.promise(() => client.wait(1, 5_000)), 1)
      assert.strictEqual(yield* master, servers[0])
      yield* failOver
      assert.strictEqual(yield* master, servers[1])
      yield* killMaster
      assert.strictEqual(yield* master, servers[0])
      assert.strictEqual(servers[1].pid(), 0)
      assert.strictEqual(yield* Effect.promise(() => client.get("key")), "value")
    })
  )
})

/** Sends back what it gets. */
const echoServer = Effect.acquireRelease(
  Effect.callback<{ port: number; received: () => number; sockets: Set<Socket>; close: () => void }>((resume) => {
    const sockets = new Set<Socket>()
    let received = 0
    const server = createServer((socket) => {
      sockets.add(socket)
      socket.on("error", () => undefined)
      socket.on("close", () => sockets.delete(socket))
      socket.on("data", (bytes) => {
        received += bytes.length
        socket.write(bytes)
      })
    })
    const close = () => {
      server.close()
      for (const socket of sockets) socket.destroy()
    }
    server.listen(0, "127.0.0.1", () => {
      const address = server.address() as { port: number }
      resume(Effect.succeed({ port: address.port, received: () => received, sockets, close }))
    })
  }),
  ({ close }) => Effect.sync(close)
)

/** A connection, and what became of it. */
const dial = (port: number) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const socket = connect(port, "127.0.0.1").setNoDelay(true)
      const seen = { text: "", error: "", ended: false, connected: false }
      socket.on("connect", () => {
        seen.connected = true
      })
      socket.on("data", (bytes) => {
        seen.text += bytes
      })
      socket.on("end", () => {
        seen.ended = true
      })
      socket.on("error", (error: NodeJS.ErrnoException) => {
        seen.error = error.code ?? ""
      })
      return Object.assign(seen, { say: (text: string) => socket.write(text), close: () => socket.destroy() })
    }),
    ({ close }) => Effect.sync(close)
  )

describe("TcpProxy", () => {
  const setUp = Effect.gen(function* () {
    const echo = yield* echoServer
    const proxy = yield* TcpProxy.make({ host: "127.0.0.1", port: echo.port })
    const open = Effect.gen(function* () {
      const socket = yield* dial(proxy.port)
      socket.say("hello ")
      yield* eventually(() => socket.text === "hello ", "an answer through the proxy")
      return socket
    })
    return { echo, proxy, open }
  })

  it.live("reset: RST on both sides, and new connections are served", () =>
    Effect.gen(function* () {
      const { echo, proxy, open } = yield* setUp
      const socket = yield* open
      yield* proxy.reset
      yield* eventually(() => socket.error === "ECONNRESET", "the reset")
      yield* eventually(() => echo.sockets.size === 0, "the reset of the server's side")
      yield* open
    })
  )

  it.live("refuse: new connections are reset until heal, others stay", () =>
    Effect.gen(function* () {
      const { proxy, open } = yield* setUp
      const before = yield* open
      yield* proxy.refuse
      const refused = yield* dial(proxy.port)
      yield* eventually(() => refused.error === "ECONNRESET", "the refusal")
      before.say("again")
      yield* eventually(() => before.text === "hello again", "an answer to the one that stayed")
      yield* proxy.heal
      yield* open
    })
  )

  it.live("blackhole: no byte and no FIN passes, and what was caught stays dead", () =>
    Effect.gen(function* () {
      const { echo, proxy, open } = yield* setUp
      const before = yield* open
      const received = echo.received()
      yield* proxy.blackhole
      const during = yield* dial(proxy.port)
      yield* eventually(() => during.connected && echo.sockets.size === 2, "a connection to nowhere")
      before.say("lost")
      during.say("lost")
      // Its FINs, too.
      for (const socket of echo.sockets) socket.end("bye")
      yield* proxy.heal
      before.say("lost")
      during.say("lost")
      // A round trip of another: had the others been passed on, they would have come by now.
      yield* open
      yield* Effect.sleep("50 millis")
      assert.strictEqual(echo.received(), received + "hello ".length)
      for (const { text, error, ended } of [before, during]) {
        assert.deepStrictEqual({ error, ended }, { error: "", ended: false })
        assert.notInclude(text, "bye")
      }
    })
  )

  it.live(
    "stall: what is said meanwhile arrives when it is healed, also from one that is gone; new ones are served",
    () =>
      Effect.gen(function* () {
        const { echo, proxy, open } = yield* setUp
        const [there, gone] = [yield* open, yield* open]
        const received = echo.received()
        yield* proxy.stall
        there.say("held")
        gone.say("held")
        gone.close()
        yield* open
        yield* Effect.sleep("50 millis")
        assert.strictEqual(echo.received(), received + "hello ".length)
        yield* proxy.heal
        yield* eventually(() => there.text === "hello held", "the answer")
        yield* eventually(() => echo.received() === received + "hello heldheld".length, "what the other had said")
        there.say("on")
        yield* eventually(() => there.text === "hello heldon", "the answer after")
      })
  )

  it.live("latency: later, each way, in order", () =>
    Effect.gen(function* () {
      const { echo, proxy, open } = yield* setUp
      const socket = yield* open
      yield* proxy.latency(100)
      const started = performance.now()
      socket.say("a")
      yield* eventually(() => echo.received() === 7, "the slow byte")
      assert.isAtLeast(performance.now() - started, 95)
      yield* proxy.latency(0)
      socket.say("b")
      yield* eventually(() => socket.text === "hello ab", "the rest, in order")
    })
  )

  it.live("ends its connections with its scope", () =>
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const { proxy, open } = yield* Scope.provide(setUp, scope)
      const socket = yield* open
      yield* Scope.close(scope, Exit.void)
      yield* eventually(() => socket.error === "ECONNRESET", "the reset")
      const late = yield* dial(proxy.port)
      yield* eventually(() => late.error === "ECONNREFUSED", "the refusal")
    })
  )
})
