// Replaces only the parts that changed, so that nothing flickers, no scroll position jumps and no text selection is
// lost. What was unfolded by hand stays so.
(function () {
  "use strict";
  var link = document.getElementById("link");
  var unfolded = {};
  document.addEventListener("toggle", function (event) {
    var key = event.target.getAttribute && event.target.getAttribute("data-key");
    if (key) { unfolded[key] = event.target.open; }
  }, true);
  function selects(part) {
    var selection = window.getSelection();
    return selection && !selection.isCollapsed && part.contains(selection.anchorNode);
  }
  function take(text) {
    var fresh = new DOMParser().parseFromString(text, "text/html");
    fresh.querySelectorAll("details[data-key]").forEach(function (one) {
      var key = one.getAttribute("data-key");
      if (key in unfolded) { one.open = unfolded[key]; }
    });
    var main = document.querySelector("main");
    fresh.querySelectorAll("section[id]").forEach(function (part) {
      var old = document.getElementById(part.id);
      if (!old) { main.appendChild(document.importNode(part, true)); return; }
      if (old.innerHTML === part.innerHTML || selects(old)) { return; }
      var focused = document.activeElement;
      var key = old.contains(focused) && focused.parentNode.getAttribute("data-key");
      old.innerHTML = part.innerHTML;
      if (key) {
        old.querySelectorAll("details[data-key]").forEach(function (one) {
          if (one.getAttribute("data-key") === key) { one.querySelector("summary").focus(); }
        });
      }
    });
    document.querySelectorAll("main > section[id]").forEach(function (part) {
      if (!fresh.getElementById(part.id)) { part.remove(); }
    });
  }
  function refresh() {
    var controller = new AbortController();
    var late = setTimeout(function () { controller.abort(); }, 5000);
    fetch("/debug/status", { headers: { accept: "text/html" }, signal: controller.signal })
      .then(function (response) {
        if (!response.ok) { throw new Error("status " + response.status); }
        return response.text();
      })
      .then(function (text) {
        take(text);
        link.textContent = "live";
        link.removeAttribute("data-lost");
      })
      .catch(function () {
        link.textContent = "no answer from the picker: what you see is old";
        link.setAttribute("data-lost", "");
      })
      .then(function () {
        clearTimeout(late);
        setTimeout(refresh, 1000);
      });
  }
  setTimeout(refresh, 1000);
})();
