// The run's console: stdout and stderr as they came, progress bars drawn in place, following the end unless the reader
// scrolled up.

const KEPT_LINES = 4000;
const ESCAPES = /\u001b(?:\[[0-?]*[ -/]*[@-~]|\][^\u0007\u001b]*(?:\u0007|\u001b\\)|[@-Z\\-_])/g;

export class Console {
  constructor(box, jump) {
    this.box = box;
    this.jump = jump;
    this.open = new Map(); // stream -> the line that is still being written
    this.follow = true;
    box.addEventListener("scroll", () => {
      this.follow = box.scrollHeight - box.scrollTop - box.clientHeight < 24;
      if (this.follow) jump.hidden = true;
    }, { passive: true });
    jump.addEventListener("click", () => { this.#toEnd(); box.focus(); });
  }

  clear() {
    this.box.replaceChildren();
    this.open.clear();
    this.follow = true;
    this.jump.hidden = true;
  }

  note(text) {
    const line = document.createElement("div");
    line.className = "note";
    line.textContent = text;
    this.box.append(line);
  }

  append(chunks) {
    if (!chunks.length) return;
    for (const { stream, text } of chunks) this.#write(stream, text.replace(ESCAPES, ""));
    while (this.box.childElementCount > KEPT_LINES) this.box.firstElementChild.remove();
    if (this.follow) this.#toEnd();
    else this.jump.hidden = false;
  }

  #write(stream, text) {
    for (const piece of text.split(/(\r\n|\n|\r)/)) {
      if (piece === "") continue;
      if (piece === "\n" || piece === "\r\n") {
        this.#line(stream);
        this.open.delete(stream);
      } else if (piece === "\r") {
        this.#line(stream).returned = true; // what comes next on this line is written over it
      } else {
        const line = this.#line(stream);
        if (line.returned) { line.textContent = piece + line.textContent.slice(piece.length); line.returned = false; }
        else line.textContent += piece;
      }
    }
  }

  #line(stream) {
    let line = this.open.get(stream);
    if (!line?.isConnected) {
      line = document.createElement("div");
      line.className = stream;
      line.textContent = "";
      this.box.append(line);
      this.open.set(stream, line);
    }
    return line;
  }

  #toEnd() {
    this.follow = true;
    this.jump.hidden = true;
    this.box.scrollTop = this.box.scrollHeight;
  }
}
