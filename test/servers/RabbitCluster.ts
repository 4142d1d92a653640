/** Nodes of RabbitMQ that are one cluster, each of which can be killed, frozen and started again. */
import { mkdtempSync, rmSync } from "node:fs"
import { connect as open } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as RabbitServer from "./RabbitServer.ts"
import { freePort } from "./RedisServer.ts"
import { ServerProcess } from "./ServerProcess.ts"

/** Through which the nodes find each other. It dies with the process that started it. */
const watch = `
exec 3<&0 </dev/null
epmd -address 127.0.0.1 -port "$1" >/dev/null 2>&1 3<&- & epmd=$!
(cat >/dev/null; kill -9 $epmd) <&3 >/dev/null 2>&1 & watcher=$!
echo $epmd
wait $epmd
kill $watcher`

const answers = (port: number) =>
  new Promise<boolean>((resolve) => {
    const socket = open(port, "127.0.0.1", () => resolve(true)).once("error", () => resolve(false))
    socket.once("connect", () => socket.destroy())
  })

const portMapper: Effect.Effect<number, never, Scope.Scope> = Effect.acquireRelease(
  Effect.promise(async () => {
    const port = await freePort()
    const process = new ServerProcess()
    const home = mkdtempSync(join(tmpdir(), "cohort-epmd-"))
    const env = { PATH: globalThis.process.env.PATH, HOME: home }
    await process.launch(
      { script: watch, args: [String(port)], env },
      () => answers(port),
      () => "epmd does not start"
    )
    return { port, process, home }
  }),
  ({ home, process }) =>
    Effect.promise(async () => {
      await process.end("SIGKILL")
      rmSync(home, { recursive: true, force: true })
    })
).pipe(Effect.map(({ port }) => port))

/** So many nodes: one, and those that join it, side by side. */
export const make = (
  count: number,
  options: Omit<RabbitServer.Options, "cluster"> = {}
): Effect.Effect<ReadonlyArray<RabbitServer.RabbitServer>, never, Scope.Scope> =>
  Effect.gen(function* () {
    const epmd = yield* portMapper
    const cluster = { epmd, cookie: `cohort${epmd}` }
    const first = yield* RabbitServer.make({ ...options, cluster })
    const join = RabbitServer.make({ ...options, cluster: { ...cluster, seed: first.node } })
    const others = yield* Effect.all(
      Array.from({ length: count - 1 }, () => join),
      { concurrency: "unbounded" }
    )
    return [first, ...others]
  })
