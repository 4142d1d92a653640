/**
 * A throw-away certificate authority, and a certificate of its making for
 * 127.0.0.1 and localhost. Files in a folder that goes with the scope.
 */
import { spawnSync } from "node:child_process"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { ensureCommand } from "./ServerProcess.ts"

/** Paths of PEM files. */
export interface Certificates {
  /** What clients trust. */
  readonly ca: string
  readonly cert: string
  readonly key: string
}

const openssl = (folder: string, command: string) => {
  const program = ensureCommand("openssl", "openssl")
  const { status, stderr } = spawnSync(program, command.split(" "), { cwd: folder, encoding: "utf8" })
  if (status !== 0) throw new Error(`openssl ${command}:\n${stderr}`)
}

export const make: Effect.Effect<Certificates, never, Scope.Scope> = Effect.gen(function* () {
  const folder = yield* Effect.acquireRelease(
    Effect.sync(() => mkdtempSync(join(tmpdir(), "cohort-certificates-"))),
    (folder) => Effect.sync(() => rmSync(folder, { recursive: true, force: true }))
  )
  return yield* Effect.sync(() => {
    const newKey = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    writeFileSync(join(folder, "extensions"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    openssl(folder, `req -x509 ${newKey} -subj /CN=cohort-test-ca -days 2 -keyout ca.key -out ca.crt`)
    openssl(folder, `req -new ${newKey} -subj /CN=localhost -keyout server.key -out server.csr`)
    openssl(
      folder,
      "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -set_serial 1 -days 2 -extfile extensions -out server.crt"
    )
    return { ca: join(folder, "ca.crt"), cert: join(folder, "server.crt"), key: join(folder, "server.key") }
  })
})
