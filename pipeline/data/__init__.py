"""Files in and out: images, label maps, pictures, folders on disks and in object stores."""
