//! The images, audio and videos of a request, by the hash of what the client sent.
//!
//! A worker that holds a medium's encoding need not compute it again, so it matters where the same
//! one went before. Two requests carry the same medium if its URL or data is the same text, however
//! it is embedded: the hash is over that text alone.

use serde_json::Value;
use xxhash_rust::xxh3::xxh3_128;

use super::text;

/// Further media of a request are not counted.
pub const MEDIA_MAX: usize = 1024;

/// An image, audio or video of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MediaItem {
    /// `image`, `audio` or `video`.
    pub modality: &'static str,
    /// XXH3-128 of its URL or data.
    pub hash: u128,
    /// Length of its URL or data as the client sent it; 4 GiB - 1 at most.
    pub bytes: u32,
}

impl MediaItem {
    fn new(modality: &'static str, content: &str) -> Self {
        Self {
            modality,
            hash: xxh3_128(content.as_bytes()),
            bytes: u32::try_from(content.len()).unwrap_or(u32::MAX),
        }
    }
}

/// Adds a medium by its URL or data.
pub(super) fn add(media: &mut Vec<MediaItem>, modality: &'static str, content: &str) {
    if media.len() < MEDIA_MAX && !content.is_empty() {
        media.push(MediaItem::new(modality, content));
    }
}

/// The media of a conversation in OpenAI's chat form, in their order.
pub(super) fn of_messages(messages: &Value) -> Vec<MediaItem> {
    let messages = messages.as_array().into_iter().flatten();
    let contents = messages.filter_map(|message| message.get("content")?.as_array());
    let mut media = Vec::new();
    for part in contents.flatten() {
        let modality = part.get("type").and_then(Value::as_str).and_then(modality);
        if let (Some(modality), Some(content)) = (modality, text::medium(part)) {
            add(&mut media, modality, content);
        }
    }
    media
}

fn modality(part_type: &str) -> Option<&'static str> {
    match part_type {
        "image_url" | "image" => Some("image"),
        "input_audio" | "audio_url" | "audio" => Some("audio"),
        "video_url" | "video" => Some("video"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_modality_is_hashed_by_its_url_or_data() {
        let messages = json!([
            {"role": "system", "content": "no parts"},
            {"role": "user", "content": [
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": "https://a/cat.png", "detail": "low"}},
                {"type": "image_url", "image_url": "https://a/cat.png"},
                {"type": "input_audio", "input_audio": {"data": "UklG", "format": "wav"}},
                {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}},
                {"type": "image_url", "image_url": null},
                {"type": "image_url"},
                "bare text",
            ]},
        ]);
        let media = of_messages(&messages);
        let shown: Vec<(&str, u32)> = media
            .iter()
            .map(|item| (item.modality, item.bytes))
            .collect();
        assert_eq!(
            shown,
            [("image", 17), ("image", 17), ("audio", 4), ("video", 26)]
        );
        assert_eq!(media[0].hash, xxh3_128(b"https://a/cat.png"));
        assert_eq!(media[0], media[1], "one image in two spellings");
    }

    #[test]
    fn media_beyond_the_bound_are_not_counted() {
        let part = json!({"type": "image_url", "image_url": {"url": "u"}});
        let content = vec![part; MEDIA_MAX + 1];
        let media = of_messages(&json!([{"role": "user", "content": content}]));
        assert_eq!(media.len(), MEDIA_MAX);
    }
}
