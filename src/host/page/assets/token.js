/** What actions need. It is kept by this tab only, and sent in a header, so that no other page can have it sent. */
import { $, say } from "./dom.js"

const key = "cohort-admin-token"
export const token = () => sessionStorage.getItem(key)

const send = async (path, body, bearer) => {
  try {
    const response = await fetch(`console/api/${path}`, {
      method: "POST",
      headers: {
        authorization: `Bearer ${bearer}`,
        ...(body === undefined ? {} : { "content-type": "application/json" })
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) })
    })
    const text = await response.text()
    return { status: response.status, body: text === "" ? undefined : JSON.parse(text) }
  } catch {
    return { status: 0, body: { detail: "the instance does not answer" } }
  }
}

export const post = async (path, body) => {
  const answer = await send(path, body, token() ?? "")
  if (answer.status === 401) forget()
  return answer
}

let actions = false
let changed = () => undefined
export const onChange = (listener) => {
  changed = listener
}
const show = () => {
  $("readonly").hidden = actions
  $("unlock").hidden = !actions || token() !== null
  $("relock").hidden = !actions || token() === null
  changed()
}
export const allow = (allowed) => {
  if (!allowed) sessionStorage.removeItem(key)
  if (allowed !== actions || (!allowed && $("readonly").hidden)) {
    actions = allowed
    show()
  }
}
const forget = () => {
  sessionStorage.removeItem(key)
  show()
}

const unlock = async () => {
  const typed = $("token").value
  // A header takes no others.
  const { body, status } = /^[\x21-\x7e]+$/.test(typed) ? await send("token", undefined, typed) : { status: 401 }
  if (status !== 204) {
    $("token-wrong").textContent = body?.detail ?? "the token is missing or wrong"
    $("token").select()
    return
  }
  sessionStorage.setItem(key, typed)
  $("token-dialog").close()
  show()
  $("relock").focus()
  say("Actions are unlocked", "good")
}

$("unlock").addEventListener("click", () => {
  $("token").value = $("token-wrong").textContent = ""
  $("token-dialog").showModal()
  $("token").focus()
})
$("token-ok").addEventListener("click", unlock)
$("token").addEventListener("keydown", (event) => {
  if (event.key === "Enter") unlock()
})
$("token-cancel").addEventListener("click", () => $("token-dialog").close())
$("token-dialog").addEventListener("close", () => {
  $("token").value = ""
})
$("relock").addEventListener("click", () => {
  forget()
  $("unlock").focus()
})
